"""Engines that find lines that may match: Hyperscan where installed, `bytes.find` elsewhere.

Picked by measurement (docs/performance.md). To install Hyperscan: `pip install autoexp[fast]`.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from autoexp.logs.patterns import Wanted
from autoexp.logs.prefilter import anchor, widened

Span = tuple[int, int]
"""Start and end of a line in a block of lines."""


class Engine(Protocol):
    """Finds lines for a set of patterns."""

    def lines(self, data: bytes) -> Iterator[Span]:
        """The lines that match a pattern, in order, and perhaps some that do not."""


_LINE = re.compile(rb"[^\n]+")


def lines_with(data: bytes, text: bytes, at: int = 0) -> Iterator[Span]:
    """The lines from a position on that contain `text`; with an empty text, all lines."""
    if not text:
        yield from (line.span() for line in _LINE.finditer(data, at))
        return
    at = data.find(text, at)
    while at >= 0:
        start = data.rfind(b"\n", 0, at) + 1
        end = data.find(b"\n", at)
        if end < 0:
            yield start, len(data)
            return
        yield start, end
        at = data.find(text, end + 1)


class Searching:
    """Searches for a text that is in every matching line: one search in memory for each pattern."""

    def __init__(self, patterns: Sequence[Wanted]) -> None:
        texts = [anchor(each) for each in patterns]
        # With one pattern without such a text, every line has to be checked.
        self._texts = [b""] if None in texts else sorted({text for text in texts if text})

    def lines(self, data: bytes) -> Iterator[Span]:
        if len(self._texts) == 1:
            yield from lines_with(data, self._texts[0])
            return
        waiting = {text: data.find(text) for text in self._texts}
        waiting = {text: at for text, at in waiting.items() if at >= 0}
        while waiting:
            at = min(waiting.values())
            start, end = data.rfind(b"\n", 0, at) + 1, data.find(b"\n", at)
            if end < 0:
                yield start, len(data)
                return
            yield start, end
            for text, place in list(waiting.items()):
                if place < end:
                    waiting[text] = data.find(text, end)
                    if waiting[text] < 0:
                        del waiting[text]


class Hyperscan:
    """Hyperscan, all patterns in one automaton; one that it refuses is searched by its text."""

    def __init__(self, patterns: Sequence[Wanted]) -> None:
        import hyperscan

        self._terminated = hyperscan.ScanTerminated
        self._end = 0
        taken = [self._taken(each) for each in patterns]
        expressions = {each for each in taken if each is not None}
        # With one pattern that it refuses, every line has to be checked.
        self._database = None if None in taken else _database(sorted(expressions))

    @staticmethod
    def _taken(wanted: Wanted) -> bytes | None:
        text = anchor(wanted)
        plain = None if text is None else widened(Wanted(wanted.name, text.decode(), False))
        candidates = (widened(wanted), plain)
        return next((each for each in candidates if each and _database([each]) is not None), None)

    def lines(self, data: bytes) -> Iterator[Span]:
        if self._database is None:
            yield from lines_with(data, b"")
            return
        view, at = memoryview(data), 0
        while at < len(data):
            try:
                self._database.scan(view[at:], self._note)
                return
            except self._terminated:
                # The end of the match, which is within its line.
                last = at + self._end - 1
            start, end = data.rfind(b"\n", 0, last) + 1, data.find(b"\n", last)
            if end < 0:
                yield start, len(data)
                return
            yield start, end
            at = end + 1

    def _note(self, number: int, start: int, end: int, flags: int, context: object) -> bool:
        """Stop at the first match: one is enough to check the line."""
        self._end = end
        return True


def _database(expressions: Sequence[bytes]) -> Any:
    """Compile expressions together; None when Hyperscan refuses them."""
    import hyperscan

    database = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
    flags = [hyperscan.HS_FLAG_MULTILINE] * len(expressions)
    try:
        database.compile(
            expressions=list(expressions), ids=list(range(len(expressions))), flags=flags
        )
    except hyperscan.HyperscanError:
        return None
    return database


EngineType = type[Hyperscan] | type[Searching]


def best_engine() -> EngineType:
    """Hyperscan where it is installed and this machine can run it."""
    try:
        import hyperscan  # noqa: F401
    except ImportError:
        return Searching
    return Hyperscan


def advice() -> str | None:
    """A hint on what to install for speed; None when nothing is missing."""
    if best_engine() is Hyperscan:
        return None
    slower = "Hyperscan is not installed: log rules run several times slower"
    return f"{slower}: `pip install autoexp[fast]`"
