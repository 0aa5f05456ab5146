"""The last lines of a job's log, in a bounded number of bytes; those of jobs that failed."""

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from autoexp.index.overview import Overview
from autoexp.jobs.record import JobRecord
from autoexp.logs.lines import with_newlines, without_escapes
from autoexp.reports.terminal import say, say_log
from autoexp.storage import atomic

_JOBS = 3  # that failed, and whose logs are shown
_LINES = 10
_SHOWN_END = 16384  # bytes of a log's end that a page shows lines of
_LONGEST = 300  # characters of a line in a page
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


class FailedLog(NamedTuple):
    """The log of a job that failed."""

    job: str
    path: Path

    @property
    def has_lines(self) -> bool:
        """True if there is anything in it."""
        try:
            return self.path.is_file() and self.path.stat().st_size > 0
        except OSError:
            return False

    def lines(self) -> list[str]:
        """Its last lines, without colours and cut; none where it cannot be read."""
        try:
            with atomic.open_to_read(self.path) as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _SHOWN_END))
                data = with_newlines(without_escapes(file.read(_SHOWN_END)))
        except OSError:
            return []
        texts = [line.decode(errors="replace").rstrip() for line in data.split(b"\n")]
        return [text[:_LONGEST] for text in texts if text][-_LINES:]

    def say(self) -> None:
        """Print its last lines, below its path."""
        say(f"{self.job}: the end of {self.path}")
        print_from(self.path, last_lines(self.path, _LINES))


def failed_logs_of(overview: Overview) -> list[FailedLog]:
    """The logs of the first jobs of a session that failed by themselves, by its rows."""
    return _first((row.name, row.failed_log) for row in overview.jobs.values())


def failed_logs(jobs: Iterable[JobRecord]) -> list[FailedLog]:
    """The logs of the first jobs that failed by themselves; those that wrote nothing have none."""
    return _first((job.spec.name, job.failed_log) for job in jobs)


def failed_log(job: JobRecord) -> FailedLog | None:
    """The log of a job that failed by itself, if there is anything in it."""
    return next(iter(failed_logs([job])), None)


def _first(failed: Iterable[tuple[str, str | None]]) -> list[FailedLog]:
    logs = (FailedLog(job, Path(log)) for job, log in failed if log is not None)
    return list(islice((log for log in logs if log.has_lines), _JOBS))
