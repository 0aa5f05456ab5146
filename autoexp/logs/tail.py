"""Reads the new complete lines of a growing log file, each of them once.

A line ends at `\\n`, at `\\r`, as the pieces of a progress bar do, and at a NUL.
Nothing is kept between two calls: the cursor has the position, the caller stores it, and
another process carries on from it. A byte is read at most twice, however slowly a line grows.

Jobs append to the logs that autoexp gives them, and nobody rotates those. The log of an adopted job
is SLURM's: it is truncated when the job is requeued, and may have grown past the cursor again when
a monitor comes back. So a log that was truncated or replaced is read from its start.
"""

import os
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

from pydantic import BaseModel, ConfigDict, Field

from autoexp.logs.lines import LogLine, Piece, with_newlines

MAX_LINE = 1 << 20  # bytes of a line that are kept; the rest of a longer one is skipped
MAX_LINES = 50_000  # lines of one call, about: progress lines take longer to read than others
LIMIT = 8 << 20  # bytes of one call
MOST_BEHIND = 256 << 20  # bytes that are still read of a file when its job has ended
BLOCK = 1 << 18  # bytes of one read
_FIRST_TURN = 1 << 16  # bytes: more than a log says between two looks, but a runaway one
_LEAST_TURN = 1 << 12  # bytes
_MOST_OVER = 3.0  # looks' worth that hundreds of first turns may take together beyond one look's
SEAM = 64  # bytes before the cursor that are looked at again before reading goes on


class LogCursor(BaseModel):
    """Position in a log; new: nothing read yet."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    generation: int = Field(0, ge=0, description="how often the log was truncated or replaced")
    inode: int | None = Field(None, description="the file being read")
    offset: int = Field(
        0,
        ge=0,
        description="bytes consumed: up to behind a line, inside a line that is being skipped, "
        "or up to the end the file had when its unterminated rest was taken as a line",
    )
    scanned: int = Field(
        0, ge=0, description="bytes looked at: from offset on without a line's end"
    )
    skipping: bool = Field(False, description="offset lies in a line longer than MAX_LINE")
    seam: int = Field(0, ge=0, description="CRC-32 of up to 64 bytes before scanned")
    size: int = Field(0, ge=0, description="bytes the file had at the last look")
    mtime_ns: int = Field(0, description="modification time of the file at the last look")

    def stands_at_end_of(self, status: os.stat_result, *, final: bool) -> bool:
        """True if a file with this status has been read completely."""
        unchanged = (self.inode, self.scanned, self.mtime_ns) == (
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
        )
        return unchanged and not (final and self.offset < self.scanned)


class Reading(NamedTuple):
    """The result of a call: the lines in order, and the cursor to store with their effects."""

    pieces: list[Piece]
    cursor: LogCursor
    lost: str | None  # what could not be read, or perhaps not, and why
    more: bool  # a bound was hit: call again
    share: float = 0.0  # of the bytes and lines that one call reads at most, about
    skipped: int = 0  # bytes that nobody will read, as `lost` says

    @property
    def lines(self) -> list[LogLine]:
        """The lines of all pieces."""
        return [line for piece in self.pieces for line in piece.lines()]


def read_new(
    path: Path,
    cursor: LogCursor,
    *,
    final: bool = False,
    limit: int = LIMIT,
    most_behind: int | None = None,
) -> Reading:
    """Reads the lines that were completed since the cursor, in about `limit` bytes.

    `final` says that the log is complete: an unterminated rest counts as a line, and of a file
    that is further behind than `most_behind` bytes (256 MiB) the last part alone is read. A missing
    file is a log that has not appeared yet. Raises OSError for whatever else the file system
    refuses.
    """
    if limit < 1:
        raise ValueError(f"limit is {limit} bytes: nothing would ever be read")
    try:
        if cursor.stands_at_end_of(path.stat(), final=final):
            return Reading([], cursor, None, False)
        file = FileIO(path, opener=_open)
    except FileNotFoundError:
        return Reading([], cursor, None, False)
    with file:
        behind = (MOST_BEHIND if most_behind is None else most_behind) if final else None
        work = _Pass(path, cursor, limit, behind)
        work.begin(file)
        complete = work.read(file, final=final)
    lost = "; ".join(work.lost) or None
    share = max((limit - work.budget) / LIMIT, work.lines / MAX_LINES)
    return Reading(work.pieces, work.cursor, lost, not complete, share, work.skipped)


class LookBudget:
    """The rest of a look's budget for all logs, in shares of what one call reads at most.

    Each log has a short first turn; what is left then is divided among those that have more.
    """

    def __init__(self) -> None:
        self.left = 1.0
        self.turn = 0.0
        """The rest for the log whose turn it is."""

    @classmethod
    def of_one_log(cls) -> "LookBudget":
        """The whole budget in one turn, for reading a single log."""
        budget = cls()
        budget.begin_turn(budget.left)
        return budget

    @property
    def is_left(self) -> bool:
        """True if enough is left for a turn."""
        return self.left * LIMIT >= _LEAST_TURN

    def begin_first_turn(self) -> bool:
        """Begin a log's first turn, even if others have used everything up: each log gets one.

        False when so many have had one that this log has to wait for the next look.
        """
        self.turn = _FIRST_TURN / LIMIT if self.left > -_MOST_OVER else 0.0
        return self.turn > 0

    def begin_turn(self, share: float) -> None:
        """Begin another turn of a log that has more."""
        self.turn = share

    def spend(self, share: float) -> None:
        """Record what was read."""
        self.left -= share
        self.turn -= share

    def limit(self, most: int) -> int:
        """Bytes that the next call may read; 0 when the turn is over."""
        left = int(self.turn * LIMIT)
        return max(min(most, left), _LEAST_TURN) if left > 0 else 0


class _Pass:
    """One call of `read_new`: its result so far, and the rest of its limits."""

    def __init__(self, path: Path, cursor: LogCursor, limit: int, behind: int | None) -> None:
        self.path = path
        self.cursor = cursor
        self.budget = limit
        self.most_behind = behind
        self.skipped = 0
        self.pieces: list[Piece] = []
        self.lines = 0
        self.lost: list[str] = []

    def begin(self, file: FileIO) -> None:
        """Moves the cursor to the start of a file that is not the one it stands in, as it was."""
        inode = os.fstat(file.fileno()).st_ino
        if self.cursor.inode is None:
            self._move(inode=inode)
        if _continues(file, self.cursor):
            return
        unread = self.cursor.size - self.cursor.offset
        known = f" (at least {unread} bytes)" if unread else ""
        self.lost.append(
            f"{self.path} was truncated or replaced: what was behind byte {self.cursor.offset} is "
            f"lost{known}"
        )
        self.cursor = LogCursor(generation=self.cursor.generation + 1, inode=inode)

    def read(self, file: FileIO, *, final: bool) -> bool:
        """Reads up to the current end of the file; False when a limit came first."""
        status = os.fstat(file.fileno())
        self._move(size=status.st_size, mtime_ns=status.st_mtime_ns)
        most = self.most_behind
        if most is not None and status.st_size - self.cursor.scanned > most:
            self._skip(file, status.st_size - most, status.st_size)
        tail = _before(file, self.cursor.scanned)
        while (ahead := status.st_size - self.cursor.scanned) > 0:
            if self.budget <= 0 or self.lines >= MAX_LINES:
                return False
            block = _read(file, min(BLOCK, self.budget, ahead), self.cursor.scanned)
            if not block:
                return self._warn_that_it_shrank()
            tail = (tail + block)[-SEAM:]
            self.lines += block.count(b"\n") + (block.count(b"\r") if b"\r" in block else 0)
            if not self._take(file, with_newlines(block), seam=crc32(tail)):
                return self._warn_that_it_shrank()
            self.budget -= len(block)
        return not final or self._take_rest(file)

    def _skip(self, file: FileIO, to: int, size: int) -> None:
        """Skips what is too much to read before the verdict; the line at `to` too."""
        at = self.cursor.offset
        self.skipped += to - at
        self.lost.append(
            f"{self.path}: {to - at} bytes were not read, from byte {at} on: the job had ended, "
            f"and of what was still unread the last {(size - to) >> 20} MiB alone are read"
        )
        self._move(offset=to, scanned=to, skipping=True, seam=crc32(_before(file, to)))

    def _take(self, file: FileIO, block: bytes, *, seam: int) -> bool:
        """Consumes the lines that a block completes; False when the data before it has vanished."""
        at, end = self.cursor.offset, self.cursor.scanned + len(block)
        skipping = self.cursor.skipping
        if skipping or b"\n" in block or end - at > MAX_LINE:
            # Only now is the start of a line that came in pieces read again, once.
            head = _read(file, self.cursor.scanned - at, at)
            if at + len(head) < self.cursor.scanned:
                return False
            at, skipping = self._cut(with_newlines(head) + block, at, skipping)
        self._move(offset=at, scanned=end, skipping=skipping, seam=seam)
        return True

    def _cut(self, data: bytes, offset: int, skipping: bool) -> tuple[int, bool]:
        """Adds the lines in data, which starts at offset; returns their end, True if in a skip."""
        start, end = 0, data.rfind(b"\n") + 1
        if skipping and end:
            start, skipping = data.index(b"\n") + 1, False
        while start < end:
            # Only a first line, which came in many pieces, can be long.
            to = end if end - start <= MAX_LINE else data.index(b"\n", start) + 1
            self._add(offset + start, data[start : to - 1])
            start = to
        if not skipping and len(data) - end > MAX_LINE:
            self._add(offset + end, data[end:])
            skipping = True
        return offset + (len(data) if skipping else end), skipping

    def _add(self, offset: int, data: bytes) -> None:
        if data := data[:MAX_LINE]:
            self.pieces.append(Piece(self.cursor.generation, offset, data))

    def _take_rest(self, file: FileIO) -> bool:
        at, end = self.cursor.offset, self.cursor.scanned
        if at < end:
            rest = _read(file, end - at, at)
            if at + len(rest) < end:
                return self._warn_that_it_shrank()
            self._add(at, with_newlines(rest))
            self._move(offset=end)
        return True

    def _warn_that_it_shrank(self) -> bool:
        self.lost.append(f"{self.path} shrank while it was being read")
        return True

    def _move(self, **changes: Any) -> None:
        self.cursor = self.cursor.model_copy(update=changes)


def _open(path: str, flags: int) -> int:
    """Opens a path without waiting: a named pipe would wait for a writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def _continues(file: FileIO, cursor: LogCursor) -> bool:
    """True if this is the cursor's file, grown or unchanged: an inode alone may be reused."""
    status = os.fstat(file.fileno())
    return (
        status.st_ino == cursor.inode
        and status.st_size >= cursor.size
        and crc32(_before(file, cursor.scanned)) == cursor.seam
    )


def _before(file: FileIO, offset: int) -> bytes:
    start = max(0, offset - SEAM)
    return _read(file, offset - start, start)


def _read(file: FileIO, count: int, offset: int) -> bytes:
    """Reads count bytes from offset on, fewer only at the end of the file."""
    data = b""
    while count > len(data):
        part = os.pread(file.fileno(), count - len(data), offset + len(data))
        if not part:
            break
        data += part
    return data
