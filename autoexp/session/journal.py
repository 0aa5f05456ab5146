"""``events.jsonl`: the events of a session in order, append-only; each event once."""

import errno
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pydantic import BaseModel, ValidationError

from autoexp.errors import SessionDamaged, SessionHeld
from autoexp.model import now
from autoexp.rules.events import CheckpointComplete, Event
from autoexp.storage import atomic


class Entry(NamedTuple):
    """An event and the time when it was seen."""

    time: datetime
    event: Event


class Position(NamedTuple):
    """A place between two entries, from which a reader continues."""

    entries: int
    """Number of entries before it."""
    size: int
    """Bytes before it."""


class Line(NamedTuple):
    """An entry as it is in the file, between two places."""

    start: Position
    entry: Entry
    end: Position
    raw: bytes


class _Stored(BaseModel):
    """A line of the file; the key beside them is for those who read it by other means."""

    time: datetime
    event: Event


START = Position(0, 0)
_LONGEST = 16 * 2**20
"""Most bytes of a line; a log line in an event is cut long before."""
_BLOCK = 1 << 16
"""Bytes of the first reading from the end."""
_RECENT = 1000
"""Entries that are kept in memory: about a megabyte."""


class Journal:
    """The events of a session; a torn last line is an append that did not happen.

    Only the keys, the checkpoints and the newest events are kept in memory: a hundred
    thousand events would take 120 MB.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys: set[str] = set()
        self._checkpoints: list[CheckpointComplete] = []
        self._recent: deque[tuple[Position, Entry]] = deque(maxlen=_RECENT)
        """The newest entries, each with the place before it."""
        self._position = START
        self._last = b""
        """The line before it, by which a reader recognizes the file."""
        self._torn = b""
        """Data that could not be appended at the last try: a part of it may be in the file."""

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def position(self) -> Position:
        """The end: after everything that was read or appended so far."""
        return self._position

    def load(self) -> None:
        """Read the journal; raises SessionDamaged with the line that does not parse."""
        for _ in self.new_entries():
            pass

    def new_entries(self) -> Iterator[Entry]:
        """The entries that were appended since the last call; raises SessionDamaged.

        For a reader in another process: it continues from the byte that it had reached.
        """
        for line in self.lines(self._where_to_go_on()):
            if self._add(line):
                yield line.entry

    def _where_to_go_on(self) -> Position:
        """The position to read from: the last one, or 0 when the file was replaced."""
        size = len(self._last)
        try:
            with self._open() as file:
                file.seek(self._position.size - size)
                if file.read(size) == self._last:
                    return self._position
        except FileNotFoundError:
            return self._position
        # A writer cuts off what a full disk took a part of, and writes it again.
        self._recent.clear()
        return START

    def since(self, position: Position) -> tuple[list[Entry], Position]:
        """The entries after a place, and the place after them; callable from any thread.

        Recent entries are in memory; of older ones only the bytes needed are read.
        """
        end = self._position
        if position.size >= end.size:
            return [], end
        recent = tuple(self._recent)  # a copy at once: the session's thread may append meanwhile
        if not recent or position.size < recent[0][0].size:
            return [line.entry for line in self.lines(position, end)], end
        return [entry for at, entry in recent if position.size <= at.size < end.size], end

    def last(self, count: int) -> list[Entry]:
        """The newest entries, in order; no more than the last thousand."""
        return [entry for _, entry in tuple(self._recent)[-count:]]

    @property
    def entries(self) -> list[Entry]:
        """All entries, in order, read from disk; raises SessionDamaged."""
        return [line.entry for line in self.lines(START)]

    def lines(self, start: Position, end: Position | None = None) -> Iterator[Line]:
        """The lines from one place to another; each key once is the caller's business."""
        try:
            file = self._open()
        except FileNotFoundError:
            return
        with file:
            file.seek(start.size)
            while line := file.readline(_LONGEST + 1):
                if len(line) > _LONGEST:
                    raise self._damaged(f", line {self._number(start)} has no end")
                if not line.endswith(b"\n"):
                    return  # it is being written, or was torn by a kill
                if end is not None and start.size >= end.size:
                    return
                behind = Position(start.entries + 1, start.size + len(line))
                yield Line(start, self._parse(line, start), behind, line)
                start = behind

    def at(self, places: Iterable[int]) -> list[Entry] | None:
        """The entries that begin at these bytes; None if one of them does not."""
        entries = []
        try:
            with self._open() as file:
                for place in places:
                    file.seek(place)
                    line = file.readline(_LONGEST + 1)
                    if not line.endswith(b"\n"):
                        return None
                    entries.append(_entry(line))
        except (FileNotFoundError, ValidationError):
            return None
        return entries

    def newest(self, count: int) -> list[Entry]:
        """The newest entries, in order, read from the end; `new_entries` goes on behind them.

        Raises SessionDamaged, as every reading does.
        """
        try:
            with self._open() as file:
                start, raw = _last_lines(file, count)
            entries = {(entry := _entry(line)).event.key: entry for line in raw}
        except FileNotFoundError:
            return []
        except ValidationError:
            self.load()  # says which line it is
            raise
        if raw:
            self._last = raw[-1]
            self._position = Position(0, start + sum(map(len, raw)))
            self._keys.update(entries)
        return list(entries.values())

    def repair(self) -> None:
        """Cut off a torn last line; its event will be seen again. For the lease's holder alone."""
        with suppress(FileNotFoundError):
            atomic.cut(self._path, self._position.size)

    def append(self, events: Iterable[Event]) -> list[Event]:
        """Append the events whose keys are new, in one write; returns them."""
        fresh: dict[str, Event] = {}
        for event in events:
            if event.key not in self._keys:
                fresh.setdefault(event.key, event)
        if not fresh:
            return []
        entries = [Entry(now(), event) for event in fresh.values()]
        lines = [encode(entry) for entry in entries]
        self._write(b"".join(lines))
        for entry, line in zip(entries, lines, strict=True):
            start = self._position
            end = Position(start.entries + 1, start.size + len(line))
            self._add(Line(start, entry, end, line))
        return list(fresh.values())

    def _write(self, data: bytes) -> None:
        """Append where this process knows the end to be.

        Raises SessionHeld where another process has appended: two would record everything twice.
        """
        size = self._position.size
        if self._torn:
            self._take_back(size)
        try:
            atomic.append(self._path, data, behind=size)
        except atomic.OtherSize as other:
            if other.found > size:
                raise SessionHeld(
                    f"{self._path}: another monitor has written into it, so this one ends; "
                    f"`autoexp status {self._path.parent.name}` says which"
                ) from None
            short = "it is shorter than this monitor left it; put it back as it was"
            raise OSError(errno.ESTALE, short, str(self._path)) from None
        except OSError:
            self._torn = data
            raise

    def _take_back(self, size: int) -> None:
        """Cut off the rest of a failed write: the disk may have failed at that too."""
        with suppress(FileNotFoundError, SessionDamaged), self._open() as file:
            file.seek(size)
            if self._torn.startswith(file.read(len(self._torn) + 1)):
                atomic.cut(self._path, size)
        self._torn = b""

    def checkpoints(self) -> list[CheckpointComplete]:
        """The checkpoints that were seen complete, in that order."""
        return list(self._checkpoints)

    def has(self, key: str) -> bool:
        """True if the journal has an event."""
        return key in self._keys

    def _add(self, line: Line) -> bool:
        """Note a line; returns whether its event is new."""
        event = line.entry.event
        key = event.key
        is_new = key not in self._keys
        if is_new:
            self._keys.add(key)
            self._recent.append((line.start, line.entry))
            if isinstance(event, CheckpointComplete):
                self._checkpoints.append(event)
        self._last = line.raw
        self._position = line.end  # last: whoever asks for what is behind a place finds it
        return is_new

    def _parse(self, line: bytes, start: Position) -> Entry:
        try:
            return _entry(line)
        except ValidationError as error:
            problem = f", line {self._number(start)} does not parse ({error})"
            raise self._damaged(problem) from error

    def _number(self, start: Position) -> int:
        """The number of the line that begins there: a reader may have begun in the middle."""
        with self._open() as file:
            return file.read(start.size).count(b"\n") + 1

    def _open(self) -> BinaryIO:
        try:
            return atomic.open_to_read(self._path)
        except atomic.WrongFile as error:
            raise self._damaged(f" cannot be read: {error.strerror}") from error

    def _damaged(self, problem: str) -> SessionDamaged:
        return SessionDamaged(
            f"{self._path}{problem}. Nothing was changed: put the file back from a backup, or "
            "remove the line, then resume the session"
        )


def _entry(line: bytes) -> Entry:
    """A line's entry; raises ValidationError."""
    stored = _Stored.model_validate_json(line)
    return Entry(stored.time, stored.event)


def _last_lines(file: BinaryIO, count: int) -> tuple[int, list[bytes]]:
    """The last whole lines of a file, and where they begin; no more is read than that takes."""
    start = file.seek(0, os.SEEK_END)
    data = b""
    while start > 0 and data.count(b"\n") <= count:
        size = min(start, max(_BLOCK, len(data)))
        start -= size
        file.seek(start)
        data = file.read(size) + data
    data = data[: data.rfind(b"\n") + 1]  # the rest is being written, or was torn by a kill
    lines = [line + b"\n" for line in data.split(b"\n")[:-1]]
    kept = lines[max(0, len(lines) - count) :] if start == 0 else lines[1:][-count:]
    return start + len(data) - sum(map(len, kept)), kept


def encode(entry: Entry) -> bytes:
    """The line of an entry."""
    content = {
        "time": entry.time.isoformat(),
        "key": entry.event.key,
        "event": entry.event.model_dump(mode="json"),
    }
    return json.dumps(content, ensure_ascii=False).encode() + b"\n"
