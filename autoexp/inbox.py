"""Requests from other processes to the monitor: one file each, written atomically.

Other processes never write into a running session. The monitor takes a request on within two
ticks; taking on is repeatable, so a kill between the effect and the removal does no harm.
"""

import uuid
from pathlib import Path
from typing import Literal

from pydantic import Field, TypeAdapter, ValidationError

from autoexp import durable
from autoexp.backends.base import Closed
from autoexp.session import Session


class CancelRequest(Closed):
    """Cancel jobs; all of the session's when none is named."""

    kind: Literal["cancel"] = "cancel"
    jobs: tuple[str, ...] = ()
    by: str = Field(description="who asked, and how")


Request = CancelRequest
_adapter: TypeAdapter[Request] = TypeAdapter(Request)


def put(session: Path, request: Request) -> Path:
    """Leave a request for the session's monitor; safe from any number of processes."""
    path = session / "inbox" / f"{request.kind}-{uuid.uuid4().hex}.json"
    durable.write(path, request.model_dump_json())
    return path


def take_on(session: Session) -> list[str]:
    """Carry all waiting requests into the records; returns a line for each. For the monitor."""
    notes = []
    for path in sorted((session.path / "inbox").glob("*.json")):
        try:
            request = _adapter.validate_json(path.read_bytes())
        except ValidationError as error:
            # Kept for whoever wrote it, out of the way of the next look.
            path.rename(path.with_suffix(".rejected"))
            notes.append(f"inbox: {path.name} is no request: {error.errors()[0]['msg']}")
            continue
        notes.append(_apply(session, request))
        path.unlink()
    return notes


def _apply(session: Session, request: Request) -> str:
    names = request_cancel(session, request.jobs, request.by)
    return f"{request.by}: cancels {', '.join(names) or 'nothing: all jobs have ended'}"


def request_cancel(session: Session, jobs: tuple[str, ...], by: str) -> list[str]:
    """Write down that jobs are to be cancelled; returns those that were not over yet."""
    names = jobs or tuple(session.jobs)
    found = []
    for name in names:
        job = session.jobs.get(name)
        if job is None or job.is_over:
            continue
        found.append(name)
        if job.cancel_requested is None:
            job.cancel_requested = by
            session.save_job(job)
    return found
