"""Where `autoexp tail` begins in a log."""

from pathlib import Path

from flows.commands import _MOST, _last_lines


def test_the_last_lines_are_looked_for_in_a_bounded_number_of_bytes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.truncate(1 << 30)  # a gigabyte without a line's end
    assert _last_lines(log, 20) == (1 << 30) - _MOST


def test_the_last_lines_of_a_log_are_found(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"one\ntwo\nthree\n")
    assert _last_lines(log, 2) == len(b"one\n")
