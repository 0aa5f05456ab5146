"""A job in short, as commands show it, and how much of it the clock and the session decide."""

from datetime import datetime
from typing import TYPE_CHECKING

from pydantic import BaseModel

from autoexp import states
from autoexp.jobs.gpu_hours import held, settled_gpu_hours
from autoexp.states import Kind, Verdict

if TYPE_CHECKING:  # an index is read without the models of records, which take longer to import
    from autoexp.jobs.record import Attempt, JobRecord


_NO_ROOM = "waits for a place in the queue (slurm.max_jobs)"


class AttemptStatus(BaseModel):
    """One submission."""

    number: int
    job_id: str | None
    state: str
    submitted_at: datetime | None
    ended_at: datetime | None
    exit_code: int | None


class JobSummary(BaseModel):
    """One job. Loss in nats per token, GPU hours over all attempts."""

    name: str
    kind: Kind
    parent: str | None
    branch_iteration: int | None
    state: str
    verdict: Verdict | None
    reason: str | None
    iteration: int | None
    target_iteration: int | None
    loss: float | None
    learning_rate: float | None
    seconds_left: float | None
    gpu_hours: float
    planned_gpu_hours: float | None
    scores: dict[str, float]
    output_dir: str
    log: str | None
    attempts: list[AttemptStatus]


class JobRow(BaseModel):
    """All that commands show of a job, from its record alone: an index keeps it."""

    summary: JobSummary
    """GPU hours of the attempts that run are not in it, nor why nothing new is submitted."""
    running: list[tuple[int, datetime]]
    """GPUs of each attempt that runs, and its start."""
    in_queue: bool
    """True if the scheduler has an attempt of it, or is about to get one."""
    waits_for_room: bool
    """True if an attempt of it would be submitted if there were room."""
    roll_backs: list[int]

    @property
    def is_over(self) -> bool:
        return self.summary.verdict is not None

    def generation(self, iteration: int) -> int:
        """Number of times the job was rolled back to before an iteration."""
        return sum(back < iteration for back in self.roll_backs)

    def spent(self, now: datetime) -> float:
        """GPU hours of all its attempts until now."""
        running = (held(gpus, started, now) for gpus, started in self.running)
        return self.summary.gpu_hours + sum(running)

    def at(self, now: datetime, stopped: str | None) -> JobSummary:
        """The job at one moment; ``stopped``: why the session submits nothing, if it does not."""
        changes: dict[str, object] = {}
        if self.running:
            changes["gpu_hours"] = self.spent(now)
        if self.waits_for_room:
            tainted = self.summary.reason
            changes["reason"] = "; ".join(filter(None, (stopped or _NO_ROOM, tainted)))
        return self.summary.model_copy(update=changes) if changes else self.summary


def row_of(job: "JobRecord") -> JobRow:
    """The row of a job."""
    spec = job.spec
    waits_for_room = job.reason is None and _waits_for_room(job)
    because = job.reason or (None if waits_for_room else waits(job))
    summary = JobSummary(
        name=spec.name,
        kind=spec.kind,
        parent=spec.parent,
        branch_iteration=spec.branch.iteration if spec.branch else None,
        state=job.state,
        verdict=job.verdict,
        reason="; ".join(filter(None, (because, job.tainted))) or None,
        iteration=job.iteration,
        target_iteration=spec.target_iteration,
        loss=job.loss,
        learning_rate=job.learning_rate,
        seconds_left=_seconds_left(job),
        gpu_hours=sum(settled_gpu_hours(attempt) for attempt in job.attempts),
        planned_gpu_hours=spec.planned.gpu_hours if spec.planned else None,
        scores=job.scores,
        output_dir=spec.output_dir,
        log=job.attempt.log if job.attempt else None,
        attempts=[_attempt_status(attempt) for attempt in job.attempts],
    )
    return JobRow(
        summary=summary,
        running=[
            (attempt.gpus, attempt.started_at)
            for attempt in job.attempts
            if attempt.started_at is not None and attempt.ended_at is None
        ],
        in_queue=bool(job.open_attempts),
        waits_for_room=waits_for_room,
        roll_backs=job.roll_backs,
    )


def _attempt_status(attempt: "Attempt") -> AttemptStatus:
    return AttemptStatus(**{name: getattr(attempt, name) for name in AttemptStatus.model_fields})


def _seconds_left(job: "JobRecord") -> float | None:
    """Iterations to go times the last measured seconds per iteration."""
    if job.is_over or not job.iteration or not job.seconds_per_iteration:
        return None
    if job.spec.target_iteration is None:
        return None
    return max(0, job.spec.target_iteration - job.iteration) * job.seconds_per_iteration


def waits(job: "JobRecord") -> str | None:
    """Describe what a job that is not over waits for; None when it runs."""
    if job.is_over or states.is_running(job.state):
        return None
    if not job.launched and job.spec.awaits:
        return f"waits for {', '.join(str(awaited) for awaited in job.spec.awaits)}"
    if not job.launched and job.spec.branch is not None:
        return f"waits for checkpoint {job.spec.branch.iteration} of {job.spec.parent}"
    if _waits_for_room(job):
        return _NO_ROOM
    attempt = job.attempt
    if attempt is None or attempt.reason is None:
        return job.warning
    hint = states.stuck(attempt.reason)
    return f"{attempt.reason}: {hint}" if hint else attempt.reason


def _waits_for_room(job: "JobRecord") -> bool:
    return not states.is_running(job.state) and job.wants_attempt()
