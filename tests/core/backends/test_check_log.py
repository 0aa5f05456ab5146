"""`backend check-log`: what is read of a log, by a pattern or by a configured trainer."""

from pathlib import Path

import pytest

from autoexp.backends.progress_line import ProgressPattern, check_log
from autoexp.cli.main import main

LOG = b"""starting
step 10 loss 2.5\x1b[0m
step 20 loss n/a
10%\rstep 28.2K loss 2.0
step 30 loss 1.5
done
"""
PATTERN = r"step (?P<iteration>\S+) loss (?P<loss>\S+)"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "job.log"
    path.write_bytes(LOG)
    return path


def test_a_log_is_read_from_its_beginning_to_its_end(log: Path) -> None:
    found = check_log(log, ProgressPattern(PATTERN).read)
    assert (found.lines, found.read, found.last_line) == (7, 3, b"done")
    assert found.first is not None and found.last is not None
    assert (found.first.progress.iteration, found.first.progress.loss) == (10, 2.5)
    assert (found.last.progress.iteration, found.last.progress.loss) == (30, 1.5)
    assert found.unread == ("loss 'n/a'", "iteration '28.2K'")


def test_the_command_shows_the_first_and_the_last_iteration_and_what_is_no_number(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["backend", "check-log", str(log), "--pattern", PATTERN]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{log}: 3 of 7 lines name an iteration",
        "first  iteration 10, loss 2.5:  step 10 loss 2.5",
        "last   iteration 30, loss 1.5:  step 30 loss 1.5",
        "not read: loss 'n/a' is not a number",
        "not read: iteration '28.2K' is not a number",
    ]


def test_a_pattern_that_matches_nothing_is_told_with_the_last_line(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["backend", "check-log", str(log), "--pattern", r"it (?P<iteration>\d+)"]) == 1
    said = capsys.readouterr().out
    assert said == f"{log}: 0 of 7 lines name an iteration; the last one is 'done'\n"
    assert main(["backend", "check-log", str(log), "demo"]) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--pattern", "("), "--pattern: "),
        (("--pattern", "loss"), "has no group `(?P<iteration>"),
        ((), "give the configuration whose trainer has written it, or a --pattern"),
        (("demo", "--pattern", PATTERN), "or a --pattern"),
    ],
)
def test_what_cannot_be_tried_is_refused(
    log: Path, words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["backend", "check-log", str(log), *words]) == 2
    assert said in capsys.readouterr().err


def test_a_log_that_is_not_there_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["backend", "check-log", str(tmp_path / "gone"), "demo"]) == 2
    assert "gone: no such file" in capsys.readouterr().err
