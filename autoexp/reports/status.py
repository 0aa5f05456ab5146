"""The status of a session: the contract of `autoexp status --json`."""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import BaseModel

from autoexp.index.overview import Overview
from autoexp.jobs.limits import above, spent
from autoexp.jobs.summary import (
    AttemptStatus,
    JobRow,
    JobSummary,
    most_telling,
    summary_of,
    waits,
    word,
)
from autoexp.model import now
from autoexp.states import Verdict
from autoexp.storage import lease
from autoexp.storage.lease import Holder

if TYPE_CHECKING:
    from autoexp.jobs.record import JobRecord
    from autoexp.rules.events import CheckpointComplete
    from autoexp.session.session import Session

__all__ = ["AttemptStatus", "JobSummary", "waits"]

ROWS = 60
"""Most jobs of a table."""


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


class Status(BaseModel):
    """A session at one moment."""

    session: str
    state: str
    """running, stopped (jobs may run without a monitor), finished, or failed."""
    flow_run_id: str | None
    monitor: MonitorStatus | None
    jobs: list[JobSummary]
    actions: ActionCounts
    events: int
    checkpoints: list[CheckpointStatus]


class Shown(BaseModel):
    """What a table shows of a session: of very many jobs the most telling, and sums of all."""

    session: str
    state: str
    jobs: list[JobSummary]
    total: int
    words: dict[str, int]
    """Number of jobs by their state or verdict."""
    gpu_hours: float
    planned_gpu_hours: float

    @classmethod
    def of(cls, status: Status) -> "Shown":
        """What a table shows of a whole status."""
        return cls.model_construct(
            session=status.session,
            state=status.state,
            jobs=most_telling(status.jobs, ROWS),
            total=len(status.jobs),
            words=Counter(map(word, status.jobs)),
            gpu_hours=sum(job.gpu_hours for job in status.jobs),
            planned_gpu_hours=sum(job.planned_gpu_hours or 0 for job in status.jobs),
        )


def status_of(session: "Session") -> Status:
    """Describe a session as read from disk, or as a monitor holds it in memory."""
    jobs = session.jobs.values()
    budget = session.experiment.budget.stop_above
    stopped = None if budget is None else above(budget, spent(jobs))
    holder = lease.look(session.path)
    return Status(
        session=session.id,
        state=state_of(jobs, is_over=session.is_over, watched=_is_alive(holder)),
        flow_run_id=_last(session.meta.flow_run_ids),
        monitor=_monitor(holder),
        jobs=[summary_of(job, stopped) for job in jobs],
        actions=_counted(action.status for action in session.actions.values()),
        events=len(session.journal),
        checkpoints=_shown(session.checkpoints()),
    )


def whole_status(overview: Overview) -> Status:
    """Describe a session from its rows and the index of its events."""
    from autoexp.index.events import EventIndex

    session, rows, at = overview.session, overview.jobs.values(), now()
    holder = lease.look(overview.path)
    stopped = above(session.stop_above, sum(row.gpu_hours(at) for row in rows))
    events = EventIndex(overview.path).read()
    valid = (event for event in events.checkpoints if _is_valid(event, overview.jobs))
    return Status.model_construct(
        session=session.session,
        state=state_of(rows, is_over=overview.is_over, watched=_is_alive(holder)),
        flow_run_id=_last(session.flow_run_ids),
        monitor=_monitor(holder),
        jobs=[row.at(at, stopped) for row in rows],
        actions=_counted(action.status for action in overview.actions().values()),
        events=events.count,
        checkpoints=_shown(valid),
    )


def shown(overview: Overview) -> Shown:
    """What a table shows of a session, from its rows."""
    session, rows, at = overview.session, overview.jobs.values(), now()
    hours = sum(row.gpu_hours(at) for row in rows)
    stopped = above(session.stop_above, hours)
    watched = _is_alive(lease.look(overview.path))
    return Shown(
        session=session.session,
        state=state_of(rows, is_over=overview.is_over, watched=watched),
        jobs=[row.at(at, stopped) for row in most_telling(rows, ROWS)],
        total=len(rows),
        words=Counter(map(word, rows)),
        gpu_hours=hours,
        planned_gpu_hours=sum(row.planned_gpu_hours or 0 for row in rows),
    )


def _is_alive(holder: Holder | None) -> bool:
    return holder is not None and holder.alive


def _monitor(holder: Holder | None) -> MonitorStatus | None:
    return None if holder is None else MonitorStatus(**holder._asdict())


def _last(flow_run_ids: list[str]) -> str | None:
    return flow_run_ids[-1] if flow_run_ids else None


def _is_valid(event: "CheckpointComplete", jobs: dict[str, JobRow]) -> bool:
    """True unless the checkpoint has been set aside or deleted."""
    job = jobs.get(event.job)
    if job is None:
        return True
    is_there = event.iteration not in job.deleted
    return is_there and event.generation == job.generation(event.iteration)


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


def state_of(jobs: "Iterable[JobRow | JobRecord]", *, is_over: bool, watched: bool) -> str:
    """The session's state in one word."""
    if is_over:
        failed = any(job.verdict is Verdict.FAILED for job in jobs)
        return "failed" if failed else "finished"
    return "running" if watched else "stopped"
