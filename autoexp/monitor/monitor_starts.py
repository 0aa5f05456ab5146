"""`starts.json`: how often a session was taken up in vain; one that always dies is given up.

Each start is written down before anything else is read, and forgotten when it ends in an orderly
way. What is left was a death: a kill, no memory, a crash of the interpreter.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from autoexp.errors import SessionGivenUp
from autoexp.model import now
from autoexp.storage import atomic, migrations

FILE = "starts.json"
MOST_DEATHS = 5
"""In a row, without progress in between: one more start would be no help."""
SETTLED_S = 600.0
"""A monitor that has watched for so long does its work, whatever becomes of it later."""


class _Starts(BaseModel):
    model_config = ConfigDict(extra="forbid")

    schema_version: int = migrations.VERSION
    flow_run_id: str
    reached: str
    """How far the session had come: a digest of its journal and its jobs."""
    times: list[datetime] = Field(default_factory=list)


@contextmanager
def counted(path: Path, flow_run_id: str | None) -> Iterator[None]:
    """Count a start of the session in `path` for as long as this lasts; for the lease's holder.

    Raises SessionGivenUp when this flow run died here too often. A start by a person (`flow_run_id`
    is None), by another flow run, or after the session was given up is the first one.
    """
    if flow_run_id is None:
        forget(path)
    else:
        _count(path, flow_run_id)
    try:
        yield
    finally:
        forget(path)


def forget(path: Path) -> None:
    """Begin to count anew. A count that cannot be removed is one too many, and no more."""
    with suppress(OSError):
        (path / FILE).unlink(missing_ok=True)


def _count(path: Path, flow_run_id: str) -> None:
    starts = _Starts(flow_run_id=flow_run_id, reached=_reached(path))
    file = path / FILE
    if file.exists():
        before = migrations.read(file, _Starts)
        if (before.flow_run_id, before.reached) == (starts.flow_run_id, starts.reached):
            starts.times = before.times
    if len(starts.times) >= MOST_DEATHS:
        # Nothing but a person starts it after this.
        forget(path)
        raise SessionGivenUp(
            f"{path.name}: its process died {len(starts.times)} times since "
            f"{starts.times[0]:%Y-%m-%d %H:%M} UTC and got nowhere in between, so it is not taken "
            "up any more; what was submitted keeps running. Read the worker's output, mend the "
            f"cause, then `autoexp resume {path.name}`, or retry this run"
        )
    starts.times = [*starts.times, now()]
    atomic.write(file, starts.model_dump_json(indent=1) + "\n")


def _reached(path: Path) -> str:
    """What moves when a monitor gets anywhere: an event, a job's state, a line of its log."""
    digest = hashlib.sha256()
    journal = path / "events.jsonl"
    digest.update(str(journal.stat().st_size if journal.exists() else 0).encode())
    for file in sorted((path / "jobs").glob("*.json")):
        digest.update(atomic.read(file))
    return digest.hexdigest()
