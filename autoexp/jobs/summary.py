"""Jobs in short, as commands show them: one by one, and in the order of their parents."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from itertools import chain, islice
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from pydantic import BaseModel

from autoexp import states
from autoexp.jobs.limits import held, settled_gpu_hours, spent_gpu_hours
from autoexp.states import Activity, Kind, Verdict

if TYPE_CHECKING:  # an index is read without the models of records, which take longer to import
    from autoexp.jobs.record import Attempt, JobRecord
    from autoexp.jobs.spec import JobSpec


_NO_ROOM = "waits for a place in the queue (slurm.max_jobs)"
_NEXT = "is about to be submitted"
_UP_TO_START = 1  # change of state that a submitted attempt can have before it starts: CONFIGURING


class AttemptStatus(BaseModel):
    """One submission."""

    number: int
    job_id: str | None
    state: str
    submitted_at: datetime | None
    expected_at: datetime | None = None
    """When the scheduler expects to start it."""
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
    warning: str | None = None
    """What is wrong at the moment with a job that is not over."""
    iteration: int | None
    target_iteration: int | None
    loss: float | None
    learning_rate: float | None
    validation_losses: dict[str, float] = {}
    grad_norm: float | None = None
    tokens_per_s: float | None = None
    tflops: float | None = None
    mfu: float | None = None
    seconds_left: float | None
    gpu_hours: float
    planned_gpu_hours: float | None
    scores: dict[str, float]
    output_dir: str
    log: str | None
    attempts: list[AttemptStatus]


class JobRow(BaseModel):
    """A job in an index: what commands ask of every job, and what they show of few as text."""

    name: str
    parent: str | None
    starts_at: int | None
    """The iteration of its parent that it starts at."""
    state: str
    verdict: Verdict | None
    in_queue: bool
    """True if the scheduler has an attempt of it, or is about to get one."""
    waits_for_room: bool
    """True if an attempt of it would be submitted if there were room."""
    settled_gpu_hours: float
    running: list[tuple[int, datetime]]
    """GPUs of each attempt that runs, and its start."""
    planned_gpu_hours: float | None
    roll_backs: list[int]
    failed_log: str | None
    """The log of a job that has failed, and that nobody cancelled."""
    deleted: list[int] = []
    """Iterations of checkpoints that are there no longer."""
    summary: str
    """The summary when its record was read, as JSON."""

    def generation(self, iteration: int) -> int:
        """Number of times the job was rolled back to before an iteration."""
        return sum(back < iteration for back in self.roll_backs)

    def gpu_hours(self, at: datetime) -> float:
        """GPU hours of all its attempts until then."""
        return self.settled_gpu_hours + sum(held(gpus, start, at) for gpus, start in self.running)

    def at(self, at: datetime, stopped: str | None) -> JobSummary:
        """The job then; ``stopped``: why the session submits nothing, if it does not."""
        summary = JobSummary.model_validate_json(self.summary)
        summary.gpu_hours = self.gpu_hours(at)
        if self.waits_for_room and stopped and summary.reason:
            for because in (_NO_ROOM, _NEXT):
                summary.reason = summary.reason.replace(because, stopped, 1)
        return summary


Job = TypeVar("Job", JobRow, JobSummary)


def word(job: JobRow | JobSummary) -> str:
    """The state of a job as tables show it: its verdict, once it has one."""
    return str(job.verdict) if job.verdict in (Verdict.FINISHED, Verdict.FAILED) else job.state


def most_telling(jobs: Collection[Job], most: int) -> list[Job]:
    """All jobs, or of very many those that failed, then those that run, then as many as fit."""
    if len(jobs) <= most:
        return list(jobs)
    failed = (job for job in jobs if job.verdict == Verdict.FAILED)
    running = (job for job in jobs if job.verdict is None and job.state == "RUNNING")
    in_order = chain(failed, running, jobs)
    kept = set(islice(dict.fromkeys(job.name for job in in_order), most))
    return [job for job in jobs if job.name in kept]


def summary_of(job: "JobRecord", stopped: str | None = None) -> JobSummary:
    """Describe a job; ``stopped``: why its session submits nothing, if it does not."""
    spec = job.spec
    because = job.reason or waits(job, stopped)
    return JobSummary(
        name=spec.name,
        kind=spec.kind,
        parent=spec.parent,
        branch_iteration=spec.branch.iteration if spec.branch else None,
        state=_state(job),
        verdict=job.verdict,
        reason="; ".join(filter(None, (because, job.tainted))) or None,
        warning=None if job.is_over else job.warning,
        iteration=job.iteration,
        target_iteration=spec.target_iteration,
        loss=job.loss,
        learning_rate=job.learning_rate,
        validation_losses={name: loss for name, (_, loss) in job.validations.items()},
        grad_norm=job.grad_norm,
        tokens_per_s=job.tokens_per_s,
        tflops=job.tflops,
        mfu=job.mfu,
        seconds_left=_seconds_left(job),
        gpu_hours=sum(spent_gpu_hours(attempt) for attempt in job.attempts),
        planned_gpu_hours=spec.planned.gpu_hours if spec.planned else None,
        scores=job.scores,
        output_dir=spec.output_dir,
        log=job.attempt.log if job.attempt else None,
        attempts=[_attempt_status(attempt) for attempt in job.attempts],
    )


def row_of(job: "JobRecord") -> JobRow:
    """The row of a job."""
    summary = summary_of(job)
    return JobRow(
        name=summary.name,
        parent=summary.parent,
        starts_at=job.spec.starts_at,
        state=summary.state,
        verdict=summary.verdict,
        in_queue=bool(job.open_attempts),
        waits_for_room=job.reason is None and waits(job) in (_NO_ROOM, _NEXT),
        settled_gpu_hours=sum(settled_gpu_hours(attempt) for attempt in job.attempts),
        running=[
            (attempt.gpus, attempt.started_at)
            for attempt in job.attempts
            if attempt.started_at is not None and attempt.ended_at is None
        ],
        planned_gpu_hours=summary.planned_gpu_hours,
        roll_backs=job.roll_backs,
        failed_log=job.failed_log,
        deleted=job.deleted,
        summary=summary.model_dump_json(),
    )


def _state(job: "JobRecord") -> str:
    """The state; RUNNING for a job that logs, which the scheduler is yet to say."""
    attempt = job.attempt
    if attempt is None or not attempt.first_logged or not states.is_before_start(attempt.state):
        return job.state
    # What a requeued attempt has logged, it logged before.
    was_requeued = attempt.transitions > _UP_TO_START or attempt.earlier_gpu_hours
    return job.state if was_requeued else "RUNNING"


def activity_of(job: "JobRecord") -> Activity:
    """What a job is doing, as far as it is not over."""
    if job.restart is not None:
        rolls_back = job.restart.roll_back_to is not None
        return Activity.ROLLING_BACK if rolls_back else Activity.RESUBMITTING
    attempt = job.attempt
    if attempt is None or (job.waits_for_slots is not None and not job.open_attempts):
        return Activity.WAITING
    if not attempt.is_open or attempt.job_id is None:
        return (
            Activity.RESUBMITTING if attempt.number > 1 or not attempt.is_open else Activity.WAITING
        )
    return Activity.RUNNING if states.is_running(_state(job)) else Activity.QUEUED


def _attempt_status(attempt: "Attempt") -> AttemptStatus:
    return AttemptStatus(**{name: getattr(attempt, name) for name in AttemptStatus.model_fields})


def _seconds_left(job: "JobRecord") -> float | None:
    """Iterations to go times the last measured seconds per iteration."""
    if job.is_over or not job.iteration or not job.seconds_per_iteration:
        return None
    if job.spec.target_iteration is None:
        return None
    return max(0, job.spec.target_iteration - job.iteration) * job.seconds_per_iteration


def waits(job: "JobRecord", stopped: str | None = None) -> str | None:
    """Describe what a job that is not over waits for; None when it runs.

    ``stopped`` is the reason why the session submits no new jobs, if there is one.
    """
    if job.is_over or states.is_running(_state(job)):
        return None
    if not job.launched and job.spec.awaits:
        return f"waits for {', '.join(str(awaited) for awaited in job.spec.awaits)}"
    if not job.launched and job.spec.starts_at is not None:
        return f"waits for checkpoint {job.spec.starts_at} of {job.spec.parent}"
    if job.wants_attempt():
        return (
            stopped
            or job.waits_for_slots
            or (_NEXT if job.spec.machine.max_jobs is None else _NO_ROOM)
        )
    attempt = job.attempt
    if attempt is None or attempt.reason is None:
        return job.warning
    hint = states.stuck(attempt.reason)
    at = attempt.expected_at
    expected = f"; expected to start {at.astimezone():%d %b %H:%M}" if at else ""
    return (f"{attempt.reason}: {hint}" if hint else attempt.reason) + expected


# Trainings, each before what branched from it


class Place(NamedTuple):
    """What decides a job's place among the others."""

    name: str
    parent: str | None
    starts_at: int | None


def place_of(spec: "JobSpec") -> Place:
    """The place of a job."""
    return Place(spec.name, spec.parent, spec.starts_at)


def in_order(places: Mapping[str, Place], known: Iterable[str]) -> list[str]:
    """Names with each training first, then its descendants; cooldowns by branch point.

    Trainings stand in the order in which they were added to the session, given by `known`.
    """
    numbers = {name: number for number, name in enumerate(known)}
    names = sorted(places, key=lambda name: numbers.get(name, len(numbers)))
    return [name for name, _ in walk([places[name] for name in names])]


def walk(places: Iterable[Place]) -> Iterator[tuple[str, int]]:
    """Each job's name and its depth below its root."""
    places = list(places)
    names = {place.name for place in places}
    children: dict[str | None, list[Place]] = {}
    for place in places:
        has_parent = place.parent in names and place.parent != place.name
        children.setdefault(place.parent if has_parent else None, []).append(place)
    for below in children.values():
        # Stable: what has no branch point stays in its order, behind the cooldowns.
        below.sort(key=_among_siblings)
    stack = [(place, 0) for place in reversed(children.get(None, []))]
    while stack:
        place, depth = stack.pop()
        yield place.name, depth
        stack += [(child, depth + 1) for child in reversed(children.get(place.name, []))]


def _among_siblings(place: Place) -> tuple[bool, int]:
    if place.parent is None:
        return False, 0
    return place.starts_at is None, place.starts_at or 0
