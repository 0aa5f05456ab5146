"""The status of a session: the contract of `autoexp status --json`."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from autoexp.index.overview import Overview, SessionRow
from autoexp.jobs.gpu_hours import above
from autoexp.jobs.summary import AttemptStatus, JobRow, JobSummary, row_of, waits
from autoexp.model import now
from autoexp.states import Verdict
from autoexp.storage import lease

if TYPE_CHECKING:
    from autoexp.rules.events import CheckpointComplete
    from autoexp.session.session import Session

__all__ = ["AttemptStatus", "JobSummary", "waits"]


class MonitorStatus(BaseModel):
    """The monitor of the session."""

    host: str
    pid: int
    alive: bool


class ActionCounts(BaseModel):
    """Actions by status."""

    pending: int = 0
    running: int = 0
    done: int = 0
    failed: int = 0


class CheckpointStatus(BaseModel):
    """A complete checkpoint."""

    job: str
    iteration: int
    path: str


class Headline(BaseModel):
    """A session at one moment, as tables show it."""

    session: str
    state: str
    """running, stopped (jobs may run without a monitor), finished, or failed."""
    flow_run_id: str | None
    monitor: MonitorStatus | None
    jobs: list[JobSummary]


class Status(Headline):
    """A session at one moment, with what its journal and its actions say."""

    actions: ActionCounts
    events: int
    checkpoints: list[CheckpointStatus]


def status_of(session: "Session") -> Status:
    """Describe a session as read from disk, or as a monitor holds it in memory."""
    rows = [row_of(job) for job in session.jobs.values()]
    shown = _headline(session.path, SessionRow.of(session.meta), rows, session.is_over)
    return Status(
        **_fields(shown),
        actions=_counted(action.status for action in session.actions.values()),
        events=len(session.journal),
        checkpoints=_shown(session.checkpoints()),
    )


def headline(overview: Overview) -> Headline:
    """Describe a session as far as tables show it, from its rows."""
    rows = list(overview.jobs.values())
    return _headline(overview.path, overview.session, rows, overview.is_over)


def whole_status(overview: Overview) -> Status:
    """Describe a session from its rows and the index of its events."""
    from autoexp.index.events import EventIndex

    events = EventIndex(overview.path).read()
    valid = (event for event in events.checkpoints if _is_valid(event, overview.jobs))
    return Status(
        **_fields(headline(overview)),
        actions=_counted(action.status for action in overview.actions().values()),
        events=events.count,
        checkpoints=_shown(valid),
    )


def _fields(shown: Headline) -> dict[str, Any]:
    # Not validated anew: of ten thousand jobs that takes longer than all the rest.
    return dict(shown)


def _headline(path: Path, session: SessionRow, rows: list[JobRow], is_over: bool) -> Headline:
    holder = lease.look(path)
    alive = holder is not None and holder.alive
    at, budget = now(), session.stop_above
    stopped = None if budget is None else above(budget, sum(row.spent(at) for row in rows))
    return Headline(
        session=session.session,
        state=state_of(rows, is_over=is_over, watched=alive),
        flow_run_id=session.flow_run_ids[-1] if session.flow_run_ids else None,
        monitor=MonitorStatus(**holder._asdict()) if holder is not None else None,
        jobs=[row.at(at, stopped) for row in rows],
    )


def _is_valid(event: "CheckpointComplete", jobs: dict[str, JobRow]) -> bool:
    """True unless the checkpoint has been set aside."""
    job = jobs.get(event.job)
    return job is None or event.generation == job.generation(event.iteration)


def _shown(checkpoints: "Iterable[CheckpointComplete]") -> list[CheckpointStatus]:
    return [
        CheckpointStatus(job=event.job, iteration=event.iteration, path=event.path)
        for event in checkpoints
    ]


def _counted(statuses: Iterable[str]) -> ActionCounts:
    counts = ActionCounts()
    for status in statuses:
        setattr(counts, status, getattr(counts, status) + 1)
    return counts


def state_of(rows: Iterable[JobRow], *, is_over: bool, watched: bool) -> str:
    """The session's state in one word."""
    if is_over:
        failed = any(row.summary.verdict is Verdict.FAILED for row in rows)
        return "failed" if failed else "finished"
    return "running" if watched else "stopped"
