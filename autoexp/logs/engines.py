"""Engines that find lines that may match: Hyperscan where installed, RE2 elsewhere.

Picked by measurement (docs/performance.md). To install Hyperscan: `pip install autoexp[fast]`.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import re2

from autoexp.logs.linear import re2_compile
from autoexp.logs.patterns import Wanted
from autoexp.logs.prefilter import anchor, widened

_LARGEST = 1000  # instructions of one pattern for RE2; production patterns have up to 100

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


class _Automaton(ABC):
    """All patterns in one automaton; one that it refuses is searched by its text."""

    def __init__(self, patterns: Sequence[Wanted]) -> None:
        taken = [self._taken(each) for each in patterns]
        expressions = {each for each in taken if each is not None}
        # With one pattern that it refuses, every line has to be checked.
        self._compiled: Any = None
        if None not in taken:
            self._compiled = self._compile(sorted(expressions))

    def _taken(self, wanted: Wanted) -> bytes | None:
        text = anchor(wanted)
        plain = None if text is None else widened(Wanted(wanted.name, text.decode(), False))
        candidates = (widened(wanted), plain)
        return next((each for each in candidates if each and self._takes(each)), None)

    def _takes(self, expression: bytes) -> bool:
        return self._compile([expression]) is not None

    @abstractmethod
    def _compile(self, expressions: Sequence[bytes]) -> Any:
        """Compile expressions together; None when the engine refuses them."""

    @abstractmethod
    def _end_of_match(self, data: bytes, at: int) -> int | None:
        """End of a match that no line with a match comes before; it is within its line."""

    def lines(self, data: bytes) -> Iterator[Span]:
        if self._compiled is None:
            yield from lines_with(data, b"")
            return
        at = 0
        while at < len(data) and (found := self._end_of_match(data, at)) is not None:
            start, end = data.rfind(b"\n", 0, found - 1) + 1, data.find(b"\n", found - 1)
            if end < 0:
                yield start, len(data)
                return
            yield start, end
            at = end + 1


class Linear(_Automaton):
    """RE2."""

    def _compile(self, expressions: Sequence[bytes]) -> Any:
        try:
            return re2_compile(b"|".join(b"(?m:%s)" % each for each in expressions))
        except re2.error:
            return None

    def _takes(self, expression: bytes) -> bool:
        # A large one may have so many states that it is simulated, at a tenth of the speed.
        compiled = self._compile([expression])
        return compiled is not None and compiled.programsize <= _LARGEST

    def _end_of_match(self, data: bytes, at: int) -> int | None:
        found = self._compiled.search(data, at)
        return None if found is None else int(found.end())


class Hyperscan(_Automaton):
    """Hyperscan."""

    def __init__(self, patterns: Sequence[Wanted]) -> None:
        import hyperscan

        self._terminated = hyperscan.ScanTerminated
        self._end = 0
        super().__init__(patterns)

    def _compile(self, expressions: Sequence[bytes]) -> Any:
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

    def _end_of_match(self, data: bytes, at: int) -> int | None:
        try:
            self._compiled.scan(memoryview(data)[at:], self._note)
        except self._terminated:
            return at + self._end
        return None

    def _note(self, number: int, start: int, end: int, flags: int, context: object) -> bool:
        """Stop at the first match: one is enough to check the line."""
        self._end = end
        return True


EngineType = type[Hyperscan] | type[Linear]


def best_engine() -> EngineType:
    """Hyperscan where it is installed and this machine can run it."""
    try:
        import hyperscan  # noqa: F401
    except ImportError:
        return Linear
    return Hyperscan


def advice() -> str | None:
    """A hint on what to install for speed; None when nothing is missing."""
    if best_engine() is Hyperscan:
        return None
    slower = "Hyperscan is not installed: log rules take about twice as long"
    return f"{slower}: `pip install autoexp[fast]`"
