"""`events.jsonl`: what happened, in order, append-only; each event once."""

import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from autoexp import durable
from autoexp.errors import SessionDamaged
from autoexp.events import CheckpointComplete, Event, adapter
from autoexp.jobs import now


class Entry(NamedTuple):
    """An event and when it was seen."""

    time: datetime
    event: Event


class Journal:
    """The events of a session; a torn last line is an append that did not happen.

    In memory are the keys, and of the events the checkpoints alone: a hundred thousand events
    would take 120 MB.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys: set[str] = set()
        self._checkpoints: list[CheckpointComplete] = []
        self._size = 0
        """Bytes that were read or written so far: whole lines."""

    def __len__(self) -> int:
        return len(self._keys)

    def load(self) -> None:
        """Read the journal; raises SessionDamaged with the line that does not parse."""
        for _ in self.news():
            pass

    def news(self) -> Iterator[Entry]:
        """The entries that were appended since the last call; raises SessionDamaged."""
        for entry, size in self._read(self._size, len(self._keys)):
            self._add(entry, size)
            yield entry

    @property
    def entries(self) -> list[Entry]:
        """All entries, in order, read from disk; raises SessionDamaged."""
        return [entry for entry, _ in self._read(0, 0)]

    def _read(self, start: int, number: int) -> Iterator[tuple[Entry, int]]:
        """The entries from a place in the file on, and how many bytes each has."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return
        with file:
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # it is being written, or was torn by a kill
                number += 1
                yield self._parse(line[:-1], number), len(line)

    def repair(self) -> None:
        """Cut off a torn last line; its event will be seen again. For the lease's holder alone."""
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return
        whole = raw.rfind(b"\n") + 1
        if whole < len(raw):
            durable.write(self._path, raw[:whole])

    def append(self, events: Iterable[Event]) -> list[Event]:
        """Append the events whose keys are new, in one write; returns them."""
        fresh: dict[str, Event] = {}
        for event in events:
            if event.key not in self._keys:
                fresh.setdefault(event.key, event)
        if not fresh:
            return []
        entries = [Entry(now(), event) for event in fresh.values()]
        lines = [_encode(entry) for entry in entries]
        durable.append(self._path, b"".join(lines))
        for entry, line in zip(entries, lines, strict=True):
            self._add(entry, len(line))
        return list(fresh.values())

    def checkpoints(self) -> list[CheckpointComplete]:
        """The checkpoints that were seen complete, in that order."""
        return list(self._checkpoints)

    def has(self, key: str) -> bool:
        """Whether an event stands in it."""
        return key in self._keys

    def _add(self, entry: Entry, size: int) -> None:
        self._size += size
        self._keys.add(entry.event.key)
        if isinstance(entry.event, CheckpointComplete):
            self._checkpoints.append(entry.event)

    def _parse(self, line: bytes, number: int) -> Entry:
        try:
            content = json.loads(line)
            time = datetime.fromisoformat(content["time"])
            return Entry(time, adapter.validate_python(content["event"]))
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            raise SessionDamaged(
                f"{self._path}, line {number} does not parse ({error}). Nothing was changed: "
                "put the file back from a backup, or remove the line, then resume the session"
            ) from error


def _encode(entry: Entry) -> bytes:
    content = {
        "time": entry.time.isoformat(),
        "key": entry.event.key,
        "event": entry.event.model_dump(mode="json"),
    }
    return json.dumps(content, ensure_ascii=False).encode() + b"\n"
