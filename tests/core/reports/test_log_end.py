"""Where `autoexp tail` begins in a log, and where it ends."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from autoexp.reports.log_end import _BLOCK, _MOST, last_lines, print_from


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
