"""Reads a trainer's progress lines by a pattern."""

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from autoexp.backends.protocol import Progress, Unread, Validation
from autoexp.logs.linear import LinePattern
from autoexp.logs.lines import without_escapes
from autoexp.logs.numbers import finite, number, whole
from autoexp.logs.patterns import groups_of
from autoexp.logs.tail import LogCursor, read_new

_GROUPS = ("iteration", "loss", "learning_rate", "seconds")
_MORE = ("grad_norm", "tokens_per_s", "tflops", "mfu")
_SEEN = 1 << 16
"""Bytes of a line that a pattern sees."""
_MOST_SECONDS = 1e6  # an iteration of eleven days: a date, or a counter, read by mistake
_SHOWN = 40  # bytes of a text that is no number


class ProgressPattern:
    """A regular expression with a group `iteration` and perhaps others."""

    def __init__(self, pattern: str) -> None:
        self._pattern = _compiled(pattern)

    def read(self, line: bytes) -> Progress | Unread | None:
        """Read the line, or its last piece where it is a progress bar.

        A loss that is not finite becomes None. A value that is not a number is reported.
        """
        for piece in reversed(without_escapes(line).split(b"\r")):
            if (found := self._pattern.search(piece)) is not None:
                return _progress(found)
        return None


class ReadLine(NamedTuple):
    """A line of a log, and what is read of it."""

    text: bytes
    progress: Progress


class LogCheck(NamedTuple):
    """What a pattern, or a trainer, reads of a whole log."""

    lines: int
    last_line: bytes
    read: int
    """Lines that name an iteration."""
    first: ReadLine | None
    last: ReadLine | None
    unread: tuple[str, ...]
    """Texts in place of numbers, the first of each kind."""


def check_log(log: Path, read: Callable[[bytes], Progress | Unread | None]) -> LogCheck:
    """Read a log from its beginning to its end; raises OSError when it cannot be read."""
    lines, last_line, found = 0, b"", 0
    first: ReadLine | None = None
    last: ReadLine | None = None
    unread: dict[str, str] = {}
    cursor, more = LogCursor(), True
    while more:
        reading = read_new(log, cursor, final=True, most_behind=log.stat().st_size)
        cursor, more = reading.cursor, reading.more
        for line in reading.lines:
            lines, last_line, progress = lines + 1, line.text, read(line.text)
            what = progress.what if isinstance(progress, Unread) else progress and progress.unread
            if what:
                unread.setdefault(what.split()[0], what)
            if isinstance(progress, Progress):
                found, last = found + 1, ReadLine(line.text, progress)
                first = first or last
    return LogCheck(lines, last_line, found, first, last, tuple(unread.values()))


class ValidationPattern:
    """A regular expression with groups `iteration` and `loss`, and perhaps `set`."""

    def __init__(self, pattern: str) -> None:
        self._pattern = _compiled(pattern)
        if "loss" not in groups_of(pattern):
            raise ValueError(f"{pattern!r} has no group `(?P<loss>[0-9.]+)`")

    def read(self, line: bytes) -> Validation | None:
        """Read the line; None where it has no validation loss that is a number."""
        found = self._pattern.search(without_escapes(line))
        if found is None:
            return None
        iteration = whole(found["iteration"] or b"")
        loss = finite(number(found["loss"] or b""))
        if iteration is None or loss is None:
            return None
        name = (found.get("set") or b"validation")[:_SHOWN].decode(errors="backslashreplace")
        return Validation(iteration, loss, name)


def _progress(found: Mapping[str, bytes]) -> Progress | Unread | None:
    text = found["iteration"]
    if not text:
        return None  # it may be left out of a pattern's match, as of one of two alternatives
    iteration = whole(text)
    if iteration is None:
        return Unread(_said("iteration", text))
    values = {name: number(found.get(name) or b"nan") for name in _GROUPS[1:]}
    seconds = values["seconds"]
    if seconds is not None and not math.isnan(seconds) and not 0 <= seconds <= _MOST_SECONDS:
        values["seconds"] = None
    # What few trainers print is no reason for a warning where it cannot be read.
    more = {name: finite(number(found.get(name) or b"nan")) for name in _MORE}
    unread = [_said(name, found[name]) for name, value in values.items() if value is None]
    return Progress(
        iteration=iteration,
        target=None,
        loss=finite(values["loss"]),
        learning_rate=finite(values["learning_rate"]),
        seconds_per_iteration=finite(values["seconds"]),
        unread=", ".join(unread) or None,
        **more,
    )


def _said(name: str, text: bytes) -> str:
    return f"{name} {text[:_SHOWN].decode(errors='backslashreplace')!r}"


@lru_cache
def _compiled(pattern: str) -> LinePattern:
    groups = set(groups_of(pattern))
    if "iteration" not in groups:
        raise ValueError(f"{pattern!r} has no group `(?P<iteration>[0-9]+)`")
    known = (*_GROUPS, *_MORE, "set")
    if unknown := groups - set(known):
        raise ValueError(f"group `{min(unknown)}`: there are {', '.join(known)}")
    return LinePattern(pattern, _SEEN)
