"""The list of nodes to avoid: one file of JSON lines, which outlives sessions and has many writers.

Each line is whole and appended under a lock of the file itself, so nothing is lost or written over;
a torn or foreign line is passed over. A removal is a line too: it ends what stands before it.
"""

import getpass
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from autoexp import sinks
from autoexp.model import now
from autoexp.storage import atomic, locks

_PATIENCE_S = 30.0
_LARGEST = 64 << 20
_LONGEST = 500


class Avoided(BaseModel):
    """A node, and why it is avoided."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str = Field(max_length=_LONGEST)
    """What makes it one entry, however often it is written."""
    node: str = Field(max_length=255)
    until: datetime
    why: str = Field(max_length=_LONGEST)
    evidence: str = ""
    """Where more is to be read."""
    by: str = ""
    source: Literal["check", "person"]
    added: datetime = Field(default_factory=now)


class Removed(BaseModel):
    """A node that is to be avoided no longer."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    removed: str = Field(max_length=255)
    by: str = ""
    at: datetime = Field(default_factory=now)


def user() -> str:
    """Who writes."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


class AvoidList:
    """The list in a file, which need not be there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Avoided]:
        """All entries that were not removed, expired ones too, in the order of the file.

        Raises OSError for a file that cannot be read, or is none.
        """
        try:
            return _entries(atomic.read(self.path, _LARGEST))
        except FileNotFoundError:
            return []

    def current(self, at: datetime) -> list[Avoided]:
        """The entries that count at a time, the oldest first; one for each node and source."""
        found: dict[tuple[str, str], Avoided] = {}
        for entry in self.read():
            if entry.until > at:
                found.setdefault((entry.node, entry.source), entry)
        return list(found.values())

    def add(self, entries: Iterable[Avoided]) -> list[Avoided]:
        """Append entries whose ids were never there; returns those that were appended.

        Raises SessionError for what cannot be the name of a node.
        """
        entries = list(entries)
        for entry in entries:
            sinks.node(entry.node)
        with self._locked() as descriptor:
            raw = _content(descriptor)
            known = {line.get("id") for line in _lines(raw)}
            fresh = [entry for entry in entries if entry.id not in known]
            _append(descriptor, raw, fresh)
        return fresh

    def remove(self, nodes: Sequence[str]) -> list[str]:
        """Append the removal of nodes; returns those of them that were avoided."""
        with self._locked() as descriptor:
            raw = _content(descriptor)
            there = {entry.node for entry in _entries(raw)}
            gone = [name for name in dict.fromkeys(nodes) if name in there]
            _append(descriptor, raw, [Removed(removed=name, by=user()) for name in gone])
        return gone

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Open the file, made by the user's umask, and hold its lock; raises OSError."""
        atomic.make_directory(self.path.parent, by_umask=True)
        atomic.step()
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666)
        try:
            deadline = time.monotonic() + _PATIENCE_S
            while not locks.try_lock(descriptor):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{self.path}: another process holds its lock")
                time.sleep(0.02)
            yield descriptor
        finally:
            os.close(descriptor)
        atomic.step()


def _content(descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, min(size, _LARGEST), 0)


def _append(descriptor: int, before: bytes, lines: Sequence[BaseModel]) -> None:
    if not lines:
        return
    text = "".join(line.model_dump_json() + "\n" for line in lines)
    torn = "\n" if before and not before.endswith(b"\n") else ""
    data = (torn + text).encode()
    if os.write(descriptor, data) != len(data):
        os.ftruncate(descriptor, len(before))
        raise OSError("the list of nodes could not be written whole: the disk is full")
    os.fsync(descriptor)


def _lines(raw: bytes) -> Iterator[dict[str, object]]:
    for line in raw.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value


def _entries(raw: bytes) -> list[Avoided]:
    found: list[Avoided] = []
    for line in _lines(raw):
        try:
            if "removed" in line:
                removed = Removed.model_validate(line).removed
                found = [entry for entry in found if entry.node != removed]
            else:
                entry = Avoided.model_validate(line)
                # Whoever wrote it: what is no name of a node reaches no command line.
                found += [entry] if sinks.is_node(entry.node) and entry.until.tzinfo else []
        except ValidationError:
            continue
    return found


def within_cap(
    own: Sequence[str], entries: Sequence[Avoided], most: int
) -> tuple[tuple[str, ...], int]:
    """The nodes to avoid, and how many are left out because checks named more than `most`.

    ``own`` are those that this session's own checks found sick, the oldest first. What people have
    added always counts.
    """
    people = {entry.node for entry in entries if entry.source == "person"}
    named = dict.fromkeys((*(e.node for e in entries if e.source == "check"), *own))
    checked = [name for name in named if name not in people and sinks.is_node(name)]
    return tuple(sorted({*people, *checked[:most]})), max(0, len(checked) - most)
