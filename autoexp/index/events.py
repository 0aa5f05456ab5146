"""Where the events of each job lie in the journal: kept, and read on from its end.

Never trusted over the journal: it is made anew when the file is another one or its last line has
changed, and an event that is not where it should be has it made anew, too.
"""

import os
from collections import defaultdict
from pathlib import Path
from zlib import crc32

from pydantic import BaseModel, ValidationError

from autoexp.index.files import FOLDER, LARGEST, keep, version
from autoexp.rules.events import CheckpointComplete
from autoexp.session.journal import START, Entry, Journal, Position
from autoexp.storage import atomic

_WORTH = 1000
"""New events from which on the index is written."""


class _Kept(BaseModel):
    """The content of the index."""

    version: str
    inode: int
    size: int
    """Bytes of the journal that were read."""
    mtime_ns: int
    last: int
    """Where the last line begins."""
    seam: int
    """CRC-32 of the last line."""
    count: int
    places: dict[str, list[int]]
    """Where the events of each job begin, in their order."""
    checkpoints: list[CheckpointComplete]


class EventIndex:
    """The events of a session by job, as of the last `read`."""

    def __init__(self, session: Path) -> None:
        self._file = session / "events.jsonl"
        self._path = session / FOLDER / "events.json"
        self._journal = Journal(self._file)
        self._clear()

    def _clear(self) -> None:
        self.count = 0
        self.checkpoints: list[CheckpointComplete] = []
        self._places: defaultdict[str, list[int]] = defaultdict(list)
        self._end = START

    def read(self) -> "EventIndex":
        """Take in what was appended; raises SessionDamaged with the line that does not parse."""
        kept = self._kept()
        if kept is not None:
            self.count, self.checkpoints = kept.count, kept.checkpoints
            self._places = defaultdict(list, kept.places)
            self._end = Position(kept.count, kept.size)
        self._read_on()
        return self

    def _read_on(self) -> None:
        before, last, raw = self.count, 0, b""
        for line in self._journal.lines(self._end):
            event = line.entry.event
            self._places[event.job].append(line.start.size)
            if isinstance(event, CheckpointComplete):
                self.checkpoints.append(event)
            self.count += 1
            self._end, last, raw = line.end, line.start.size, line.raw
        if self.count - before >= _WORTH:
            self._keep(last, raw)

    def of_job(self, job: str) -> list[Entry]:
        """The events of a job, in their order, each once; bytes of no others are read."""
        entries = self._journal.at(self._places.get(job, ()))
        if entries is None or any(entry.event.job != job for entry in entries):
            self._clear()
            self._read_on()
            entries = self._journal.at(self._places.get(job, ())) or []
        return list({entry.event.key: entry for entry in reversed(entries)}.values())[::-1]

    def _kept(self) -> _Kept | None:
        """What was kept, if it is of this file."""
        try:
            kept = _Kept.model_validate_json(atomic.read(self._path, LARGEST))
            with atomic.open_to_read(self._file) as file:
                status = os.fstat(file.fileno())
                file.seek(kept.last)
                raw = file.read(max(0, kept.size - kept.last))
        except (OSError, ValueError, ValidationError):
            return None
        is_same = (kept.version, kept.inode, kept.seam) == (version(), status.st_ino, crc32(raw))
        has_grown = status.st_size > kept.size
        is_unchanged = (status.st_size, status.st_mtime_ns) == (kept.size, kept.mtime_ns)
        return kept if is_same and (has_grown or is_unchanged) else None

    def _keep(self, last: int, raw: bytes) -> None:
        def content(now_ns: int) -> str:
            status = self._file.stat()
            kept = _Kept(
                version=version(),
                inode=status.st_ino,
                size=self._end.size,
                mtime_ns=status.st_mtime_ns,
                last=last,
                seam=crc32(raw),
                count=self.count,
                places=self._places,
                checkpoints=self.checkpoints,
            )
            return kept.model_dump_json()

        keep(self._path, content)
