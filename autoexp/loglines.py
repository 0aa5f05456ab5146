"""Lines of a log, and pieces of a log that hold many of them."""

from collections.abc import Iterator
from typing import NamedTuple


class LogLine(NamedTuple):
    """A line without its newline; (generation, offset) is its identity within a log."""

    generation: int
    offset: int  # of the line's first byte in its file
    text: bytes  # as written: decoding is the caller's


class Piece(NamedTuple):
    """Lines as they stand in the file, one behind the other, without the last one's newline.

    Most of a log says nothing to anybody: a piece is looked through as a whole.
    """

    generation: int
    offset: int  # of its first byte
    data: bytes
    cut: bool = False  # the first bytes of one line that is too long

    def line(self, start: int, end: int) -> LogLine:
        """The line that stands between two places of `data`."""
        text = self.data[start:end]
        text = text if self.cut else text.removesuffix(b"\r")
        return LogLine(self.generation, self.offset + start, text)

    def lines(self) -> Iterator[LogLine]:
        """All lines of the piece."""
        start = 0
        for text in self.data.split(b"\n"):
            yield self.line(start, start + len(text))
            start += len(text) + 1
