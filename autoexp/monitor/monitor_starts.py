"""`starts.json`: starts of a session without progress; after several crashes it is given up.

Each start is recorded before anything else is read, and removed when it ends in an orderly
way. What is left was a crash: a kill, no memory, a crash of the interpreter.
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
"""Crashes in a row, without progress in between, after which the session is given up."""
SETTLED_S = 600.0
"""Seconds after which a monitor counts as working, whatever happens to it later."""


class Starts(BaseModel):
    """`starts.json`: the starts of one flow run that came to nothing so far."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = migrations.VERSION
    flow_run_id: str
    reached: str
    """Progress of the session: a digest of its journal and its jobs."""
    times: list[datetime] = Field(default_factory=list)


@contextmanager
def counted(path: Path, flow_run_id: str | None) -> Iterator[None]:
    """Count a start of the session in `path` while the context is open; for the lease's holder.

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
    """Reset the count. A count that cannot be removed is only one too many."""
    with suppress(OSError):
        (path / FILE).unlink(missing_ok=True)


def _count(path: Path, flow_run_id: str) -> None:
    starts = Starts(flow_run_id=flow_run_id, reached=_reached(path))
    file = path / FILE
    if file.exists():
        before = migrations.read(file, Starts)
        if (before.flow_run_id, before.reached) == (starts.flow_run_id, starts.reached):
            starts.times = before.times
    if len(starts.times) >= MOST_DEATHS:
        # After this only a person starts it.
        forget(path)
        raise SessionGivenUp(
            f"{path.name}: its process died {len(starts.times)} times since "
            f"{starts.times[0]:%Y-%m-%d %H:%M} UTC without progress in between, so it is no longer "
            "resumed; submitted jobs keep running. Read the worker's output, fix the "
            f"cause, then `autoexp resume {path.name}`, or retry this run"
        )
    starts.times = [*starts.times, now()]
    atomic.write(file, starts.model_dump_json(indent=1) + "\n")


def _reached(path: Path) -> str:
    """Digest of what changes with progress: events, jobs' states, lines of their logs."""
    digest = hashlib.sha256()
    journal = path / "events.jsonl"
    digest.update(str(journal.stat().st_size if journal.exists() else 0).encode())
    for file in sorted((path / "jobs").glob("*.json")):
        digest.update(atomic.read(file))
    return digest.hexdigest()
