"""`events.jsonl`: what happened, in order, append-only; each event once."""

import json
from collections.abc import Iterable
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
    """The events of a session; a torn last line is an append that did not happen."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.entries: list[Entry] = []
        self._keys: set[str] = set()

    def __len__(self) -> int:
        return len(self.entries)

    def load(self) -> None:
        """Read the journal; raises SessionDamaged with the line that does not parse."""
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return
        lines = raw.split(b"\n")
        # What stands behind the last newline is being written, or was torn by a kill.
        for number, line in enumerate(lines[:-1], start=1):
            self._add(self._parse(line, number))

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
        durable.append(self._path, b"".join(_encode(entry) for entry in entries))
        for entry in entries:
            self._add(entry)
        return list(fresh.values())

    def checkpoints(self) -> list[CheckpointComplete]:
        """The checkpoints that were seen complete, in that order."""
        return [e.event for e in self.entries if isinstance(e.event, CheckpointComplete)]

    def has(self, key: str) -> bool:
        """Whether an event stands in it."""
        return key in self._keys

    def _add(self, entry: Entry) -> None:
        self.entries.append(entry)
        self._keys.add(entry.event.key)

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
