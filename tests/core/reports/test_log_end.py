"""Where `autoexp tail` begins in a log, and where it ends."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from autoexp.cli.main import main
from autoexp.index.overview import Overview
from autoexp.reports.log_end import (
    _BLOCK,
    _MOST,
    FailedLog,
    failed_logs,
    failed_logs_of,
    last_lines,
    print_from,
)
from tests.core.story import Story, StoryOf, say


def test_the_last_lines_are_looked_for_in_a_bounded_number_of_bytes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.truncate(1 << 30)  # a gigabyte without a line's end
    assert last_lines(log, 20) == (1 << 30) - _MOST


def test_the_last_lines_of_a_log_are_found(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"one\ntwo\nthree\n")
    assert last_lines(log, 2) == len(b"one\n")


@pytest.mark.parametrize("lines", [0, 1, 2, 999, 1000, 1001])
@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_the_last_lines_are_found_wherever_the_blocks_end(
    tmp_path: Path, lines: int, end: str
) -> None:
    log, texts = tmp_path / "log", ["x" * (_BLOCK // 100 + n % 7) for n in range(1000)]
    log.write_bytes((end or "\n").join(texts).encode() + end.encode())
    start = last_lines(log, lines)
    found = log.read_bytes()[start:].decode().splitlines()
    assert found == (texts[-lines:] if lines else [])


def test_tail_of_a_log_that_grows_for_ever_ends_with_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"one\ntwo\n")

    def growing(lines: Iterator[bytes]) -> int:
        said = 0
        for number, line in enumerate(lines):
            assert number < 2, "it prints what came while it was printing"
            with log.open("ab") as file:
                file.write(b"more\n")
            said += len(line)
        return said

    monkeypatch.setattr("autoexp.reports.log_end.say_log", growing)
    assert print_from(log, 0) == len(b"one\ntwo\n")


def test_the_end_of_a_failed_jobs_log_is_shown_and_of_nothing_else(
    story_of: StoryOf, capsys: pytest.CaptureFixture[str]
) -> None:
    story = story_of()
    attempt = story.job().attempt
    assert attempt is not None
    log = Path(attempt.log)
    log.write_bytes(b"".join(b"line %d\n" % n for n in range(40)) + b"\x1b[31mlast\x1b[0m")
    assert failed_logs(story.session.jobs.values()) == []
    story.look(state="FAILED", exit_code=1)
    (found,) = failed_logs(story.session.jobs.values())
    assert found == FailedLog("tiny", log)
    assert failed_logs_of(Overview(story.session.path).read()) == [found]
    assert found.lines() == [*(f"line {n}" for n in range(31, 40)), "last"]
    found.say()
    said = capsys.readouterr().out.splitlines()
    assert said == [f"tiny: the end of {log}", *found.lines()]
    log.write_text("")
    assert failed_logs(story.session.jobs.values()) == []  # a path to nothing is no help
    log.unlink()
    assert failed_logs(story.session.jobs.values()) == []


def test_a_job_that_somebody_cancelled_needs_no_end_of_its_log(story_of: StoryOf) -> None:
    story = story_of()
    story.log(10)
    story.session.change_job(story.job(), cancel_requested="ann")
    story.look(state="CANCELLED")
    assert failed_logs(story.session.jobs.values()) == []


def test_a_page_shows_the_end_of_a_log_of_any_bytes_in_bounds(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"first\n" + b"x" * 100_000 + b"\r\n\xff`|[a](b)\n\n\n")
    assert FailedLog("a", log).lines() == ["x" * 300, "\N{REPLACEMENT CHARACTER}`|[a](b)"]
    assert FailedLog("a", tmp_path / "gone").lines() == []


def test_tail_follows_a_job_that_is_yet_to_be_submitted_to_its_end(
    session_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    story = Story(session_path)
    steps = iter(
        [
            lambda: None,  # it waits on
            story.submit,
            lambda: say(story, "first"),
            lambda: (say(story, "last"), story.look(state="FAILED", exit_code=1)),
        ]
    )
    monkeypatch.setattr("autoexp.cli.status.time.sleep", lambda seconds: next(steps)())
    assert main(["tail", str(session_path), "-f"]) == 0
    said = capsys.readouterr()
    assert said.out == "first\nlast\n"
    waits, log = said.err.splitlines()
    assert waits == "tiny: waits for its submission (is about to be submitted)"
    assert log.startswith("==> ")


def test_tail_without_following_says_why_there_is_no_log(
    session_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tail", str(session_path), "tiny-cd100"]) == 2
    assert "tiny-cd100: has not been submitted yet" in capsys.readouterr().err
