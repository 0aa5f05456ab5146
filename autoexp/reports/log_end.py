"""The last lines of a job's log, in a bounded number of bytes."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from autoexp.reports.terminal import say_log
from autoexp.storage import atomic

_BLOCK = 65536
_MOST = 8 << 20  # bytes in which the last lines are looked for


def last_lines(log: Path, lines: int) -> int:
    """Offset of the last `lines` lines of the log, in bytes; within its last 8 MiB at most."""
    if not log.exists():
        return 0
    position = log.stat().st_size
    least = max(0, position - _MOST)
    with atomic.open_to_read(log) as file:
        blocks: list[bytes] = []
        # One more newline than lines: the one before the first of them. The last byte ends one.
        found, end = 0, position - 1
        while position > least and found <= lines:
            step = min(position - least, _BLOCK)
            position -= step
            file.seek(position)
            blocks.append(file.read(step))
            found += blocks[-1].count(b"\n", 0, end - position)
    skipped = b"".join(reversed(blocks)).splitlines(keepends=True)[: -lines or None]
    return position + sum(map(len, skipped))


def print_from(log: Path, position: int) -> int:
    """Print the log from a position to its current end; returns the new position."""
    if not log.exists():
        return position
    with atomic.open_to_read(log) as file:
        # A log that grows faster than it is printed has no end to wait for.
        return position + say_log(_lines(file, position, os.fstat(file.fileno()).st_size))


def _lines(file: BinaryIO, position: int, end: int) -> Iterator[bytes]:
    file.seek(position)
    while position < end and (line := file.readline(min(_BLOCK, end - position))):
        position += len(line)
        yield line
