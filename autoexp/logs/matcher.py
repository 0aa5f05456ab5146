"""Matching log lines against all rules at once, in pieces of a log that hold thousands of lines.

An engine finds the lines that may match; whether one does, and what it captures, is decided
by one pattern on the line alone (`linear.py`), so the answers are the same with every engine.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from autoexp.logs.engines import Engine, EngineType, Span, best_engine, lines_with
from autoexp.logs.linear import SEEN, LinePattern
from autoexp.logs.lines import LogLine, Piece, PlainPiece
from autoexp.logs.patterns import Wanted
from autoexp.logs.prefilter import anchor


class Hit(NamedTuple):
    """A line that a rule's pattern was found in, and what it captured."""

    name: str
    line: LogLine
    groups: dict[str, bytes]


class _Compiled(NamedTuple):
    name: str
    seen: int
    """Bytes of a line that it sees."""
    text: bytes
    """A text in every line that matches."""
    regex: LinePattern | None
    """None: the text alone is the pattern."""


class Matcher:
    """Finds the lines that match rules; compiled once for all jobs with the same rules."""

    def __init__(self, compiled: list[_Compiled], engine: Engine) -> None:
        self._compiled = compiled
        self._engine = engine

    def search(
        self, piece: Piece, mark: bytes | None = None
    ) -> Iterator[tuple[LogLine, list[Hit]]]:
        """The lines with a match or the `mark`, in order; matches in the order of the rules."""
        for line, is_suspect, is_marked in self.candidates(piece, mark):
            hits = list(self.hits(line)) if is_suspect else []
            if hits or is_marked:
                yield line, hits

    def candidates(
        self, piece: Piece, mark: bytes | None = None
    ) -> Iterator[tuple[LogLine, bool, bool]]:
        """The lines that may have a hit in them or have the mark, in order, and which of them.

        An empty mark stands in every line.
        """
        plain = PlainPiece(piece)
        spans = self._suspects(plain.data) if self._compiled else iter(())
        marked = iter(()) if mark is None else lines_with(plain.data, mark)
        for span, is_suspect, is_marked in _merged(spans, marked):
            yield plain.line(*span), is_suspect, is_marked

    def _suspects(self, data: bytes) -> Iterator[Span]:
        """The lines that the engine picks; all remaining ones where it fails."""
        at = 0
        try:
            for span in self._engine.lines(data):
                yield span
                at = span[1]
        except Exception:  # whatever a foreign engine raises: no line is lost by it
            yield from lines_with(data, b"", at)

    def hits(self, line: LogLine) -> Iterator[Hit]:
        """The matches of the rules in a line, in their order."""
        for name, seen, text, regex in self._compiled:
            shown = line.text[:seen]
            if text not in shown:
                continue
            if regex is None:
                yield Hit(name, line, {})
            elif (found := regex.search(shown)) is not None:
                yield Hit(name, line, found)


def matcher(wanted: Iterable[Wanted], engine: EngineType | None = None) -> Matcher:
    """Compile patterns, once for a session; for the best engine there is, unless one is named."""
    patterns = list(wanted)
    make = engine or best_engine()
    return Matcher([_compile(each) for each in patterns], make(patterns))


def _compile(wanted: Wanted) -> _Compiled:
    text = anchor(wanted) or b""
    if not wanted.is_regex:
        return _Compiled(wanted.name, SEEN, text, None)
    regex = LinePattern(wanted.pattern)
    return _Compiled(wanted.name, regex.seen, text, regex)


def _merged(one: Iterator[Span], other: Iterator[Span]) -> Iterator[tuple[Span, bool, bool]]:
    """Merge both, in order, with which of the two has each line."""
    a, b = next(one, None), next(other, None)
    while a is not None or b is not None:
        first = b if a is None or (b is not None and b < a) else a
        in_one, in_other = a == first, b == first
        assert first is not None
        yield first, in_one, in_other
        if in_one:
            a = next(one, None)
        if in_other:
            b = next(other, None)
