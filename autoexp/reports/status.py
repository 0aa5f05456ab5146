"""The status of a session: the contract of `autoexp status --json`."""

from datetime import datetime

from pydantic import BaseModel

from autoexp import states
from autoexp.jobs.limits import over_budget, spent_gpu_hours
from autoexp.jobs.record import Attempt, JobRecord
from autoexp.session.session import Session
from autoexp.states import Kind, Verdict
from autoexp.storage import lease


class MonitorStatus(BaseModel):
    """The monitor of the session."""

    host: str
    pid: int
    alive: bool


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
    validation_losses: dict[str, float] = {}
    grad_norm: float | None = None
    tokens_per_s: float | None = None
    tflops: float | None = None
    seconds_left: float | None
    gpu_hours: float
    planned_gpu_hours: float | None
    scores: dict[str, float]
    output_dir: str
    log: str | None
    attempts: list[AttemptStatus]


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


def status_of(session: Session) -> Status:
    """Describe a session as read from disk, or as a monitor holds it in memory."""
    holder = lease.look(session.path)
    counts = ActionCounts()
    for action in session.actions.values():
        setattr(counts, action.status, getattr(counts, action.status) + 1)
    alive = holder is not None and holder.alive
    stopped = over_budget(session.experiment.budget, session.jobs.values())
    flow_run_ids = session.meta.flow_run_ids
    return Status(
        session=session.id,
        state=state_of(session, watched=alive),
        flow_run_id=flow_run_ids[-1] if flow_run_ids else None,
        monitor=MonitorStatus(**holder._asdict()) if holder is not None else None,
        jobs=[_job_status(job, stopped) for job in session.jobs.values()],
        actions=counts,
        events=len(session.journal),
        checkpoints=[
            CheckpointStatus(job=event.job, iteration=event.iteration, path=event.path)
            for event in session.checkpoints()
        ],
    )


def state_of(session: Session, *, watched: bool) -> str:
    """The session's state in one word."""
    if session.is_over:
        failed = any(job.verdict is Verdict.FAILED for job in session.jobs.values())
        return "failed" if failed else "finished"
    return "running" if watched else "stopped"


def _job_status(job: JobRecord, stopped: str | None) -> JobSummary:
    spec = job.spec
    return JobSummary(
        name=spec.name,
        kind=spec.kind,
        parent=spec.parent,
        branch_iteration=spec.branch.iteration if spec.branch else None,
        state=job.state,
        verdict=job.verdict,
        reason="; ".join(filter(None, (job.reason or waits(job, stopped), job.tainted))) or None,
        iteration=job.iteration,
        target_iteration=spec.target_iteration,
        loss=job.loss,
        learning_rate=job.learning_rate,
        validation_losses={name: loss for name, (_, loss) in job.validations.items()},
        grad_norm=job.grad_norm,
        tokens_per_s=job.tokens_per_s,
        tflops=job.tflops,
        seconds_left=_seconds_left(job),
        gpu_hours=sum(spent_gpu_hours(attempt) for attempt in job.attempts),
        planned_gpu_hours=spec.planned.gpu_hours if spec.planned else None,
        scores=job.scores,
        output_dir=spec.output_dir,
        log=job.attempt.log if job.attempt else None,
        attempts=[_attempt_status(attempt) for attempt in job.attempts],
    )


def _attempt_status(attempt: Attempt) -> AttemptStatus:
    return AttemptStatus(**attempt.model_dump(include=set(AttemptStatus.model_fields)))


def _seconds_left(job: JobRecord) -> float | None:
    """Iterations to go times the last measured seconds per iteration."""
    if job.is_over or not job.iteration or not job.seconds_per_iteration:
        return None
    if job.spec.target_iteration is None:
        return None
    return max(0, job.spec.target_iteration - job.iteration) * job.seconds_per_iteration


def waits(job: JobRecord, stopped: str | None = None) -> str | None:
    """Describe what a job that is not over waits for; None when it runs.

    ``stopped` is the reason why the session submits no new jobs, if there is one.
    """
    if job.is_over or states.is_running(job.state):
        return None
    if not job.launched and job.spec.awaits:
        return f"waits for {', '.join(str(awaited) for awaited in job.spec.awaits)}"
    if not job.launched and job.spec.starts_at is not None:
        return f"waits for checkpoint {job.spec.starts_at} of {job.spec.parent}"
    if job.wants_attempt():
        return stopped or "waits for a place in the queue (slurm.max_jobs)"
    attempt = job.attempt
    if attempt is None or attempt.reason is None:
        return job.warning
    hint = states.stuck(attempt.reason)
    return f"{attempt.reason}: {hint}" if hint else attempt.reason
