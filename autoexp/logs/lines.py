"""Lines of a log, and pieces of a log that hold many of them."""

import re
from collections.abc import Iterator
from typing import NamedTuple

_ESCAPE = b"\x1b"
# ECMA-48: control sequences (colours, erasing, moving), strings that end (titles, links), and the
# short ones; of what was cut off, the beginning. None reaches beyond its line.
_ESCAPES = re.compile(
    rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]*(?:\x07|\x1b\\)|[PX^_][^\x1b\n]*\x1b\\"
    rb"|[ -/]*[0-~]|)"
)
_ENDS = bytes.maketrans(b"\r\0", b"\n\n")


def with_newlines(data: bytes) -> bytes:
    """Bytes of a log with a newline wherever a line ends; of the same length.

    Progress bars end their pieces with `\\r`. A NUL is no text: crashes, several writers on NFS and
    truncated logs leave blocks of them between lines.
    """
    if b"\r" in data or b"\0" in data:
        return data.translate(_ENDS)
    return data


def without_escapes(text: bytes) -> bytes:
    """Text as a terminal shows it, without colours and without what moves the cursor."""
    return _ESCAPES.sub(b"", text) if _ESCAPE in text else text


class LogLine(NamedTuple):
    """A line without its end, never an empty one; (generation, offset) is its identity."""

    generation: int
    offset: int  # of the line's first byte in its file
    text: bytes  # as written: decoding is the caller's


class Piece(NamedTuple):
    """Lines as they stand in the file, with a newline behind each but the last.

    Most of a log matches nothing: a piece is searched as a whole.
    """

    generation: int
    offset: int  # of its first byte
    data: bytes

    def line(self, start: int, end: int) -> LogLine:
        """The line that stands between two places of `data`."""
        return LogLine(self.generation, self.offset + start, self.data[start:end])

    def lines(self) -> Iterator[LogLine]:
        """The lines of the piece."""
        start = 0
        for text in self.data.split(b"\n"):
            if text:
                yield self.line(start, start + len(text))
            start += len(text) + 1


class PlainPiece:
    """A piece without escapes, with the positions of its lines in the file."""

    def __init__(self, piece: Piece) -> None:
        self._piece = piece
        self.data = without_escapes(piece.data)
        self._starts: list[int] | None = None
        if self.data is not piece.data:
            self._starts = [0, *(end.end() for end in re.finditer(b"\n", piece.data))]
        self._number = self._start = 0

    def line(self, start: int, end: int) -> LogLine:
        """The line between two places of `data`; to be asked for in order."""
        if self._starts is None:
            return self._piece.line(start, end)
        self._number += self.data.count(b"\n", self._start, start)
        self._start = start
        place = self._piece.offset + self._starts[self._number]
        return LogLine(self._piece.generation, place, self.data[start:end])
