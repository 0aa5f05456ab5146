"""What a job needs next, as a value: submit, withdraw, replace, cancel, or nothing.

`next_step` is pure. The monitor asks it for every job that changed and hands the steps over as
values; `autoexp.operations.step_runs.carry_out` does them.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from autoexp.jobs.limits import chain_length
from autoexp.jobs.record import Attempt, JobRecord
from autoexp.resources.machines import SlurmCluster

Group = list[JobRecord]


class Submit(NamedTuple):
    """Bring jobs to the scheduler: one, or several that go as an array."""

    jobs: tuple[str, ...]
    as_array: bool = False


class Withdraw(NamedTuple):
    """Close the intent of an attempt that is no longer wanted, or learn its job id."""

    jobs: tuple[str]


class Replace(NamedTuple):
    """The last steps of a restart, now that nothing of the job is alive."""

    jobs: tuple[str]


class Cancel(NamedTuple):
    """End what jobs have in the queue, all in one command."""

    jobs: tuple[str, ...]


NextStep = Submit | Withdraw | Replace | Cancel


def next_step(job: JobRecord, asked: Collection[str] = ()) -> NextStep | None:
    """What a job needs next; None: nothing, as far as can be seen now.

    `asked` are the keys of the attempts that the scheduler has been asked to end.
    """
    name = job.spec.name
    if to_cancel(job, asked):
        return Cancel((name,))
    if job.may_be_replaced:
        return Replace((name,))
    attempt = job.unsubmitted
    if not job.launched:
        return None
    if attempt is not None:
        return Withdraw((name,)) if job.is_ending else Submit((name,), _is_task(attempt))
    if job.wants_attempt(chain_length(job)):
        return Submit((name,), can_join(job))
    return None


def to_cancel(job: JobRecord, asked: Collection[str] = ()) -> list[Attempt]:
    """Attempts in the queue of a job that is to end or to restart, and those queued behind."""
    if not job.is_ending:
        return []
    return [
        attempt
        for attempt in job.open_attempts
        if attempt.job_id is not None and attempt.key not in asked
    ]


def _is_task(attempt: Attempt) -> bool:
    return attempt.array_index is not None


def together(
    steps: Iterable[NextStep], jobs: Mapping[str, JobRecord], longest: int
) -> list[NextStep]:
    """Put steps together that go in one command: what is cancelled, and the tasks of an array.

    `longest` is how many tasks an array may have.
    """
    cancelled: list[str] = []
    tasks: list[JobRecord] = []
    found: list[NextStep] = []
    for step in steps:
        match step:
            case Cancel(names):
                cancelled += names
            case Submit(names, as_array=True):
                tasks += [jobs[name] for name in names]
            case _:
                found.append(step)
    if cancelled:
        found.append(Cancel(tuple(cancelled)))
    for group in groups(tasks, longest):
        is_array = len(group) > 1 or group[0].unsubmitted is not None
        found.append(Submit(tuple(job.spec.name for job in group), as_array=is_array))
    return found


def groups(jobs: Iterable[JobRecord], longest: int) -> list[Group]:
    """Put jobs together that can go as one array; a group of one goes alone.

    What was begun as an array and not submitted stays together. `longest` is SLURM's
    MaxArraySize, which bounds the index too.
    """
    begun: dict[str, Group] = {}
    fresh: dict[tuple[str, str], Group] = {}
    alone: list[Group] = []
    for job in jobs:
        attempt = job.unsubmitted
        if attempt is not None and attempt.array_index is not None:
            begun.setdefault(attempt.name, []).append(job)
        elif can_join(job):
            alike = (job.spec.kind, job.spec.machine.model_dump_json())
            fresh.setdefault(alike, []).append(job)
        else:
            alone.append([job])
    chunks = [
        group[start : start + longest]
        for group in fresh.values()
        for start in range(0, len(group), longest)
    ]
    return [*begun.values(), *chunks, *alone]


def can_join(job: JobRecord) -> bool:
    """Whether a job can go as a task of an array: it is submitted for the first time."""
    machine = job.spec.machine
    return isinstance(machine, SlurmCluster) and machine.arrays and not job.attempts


def not_done(step: NextStep, reason: str) -> str:
    """What a job's warning says while a step of it fails."""
    match step:
        case Submit():
            return f"not submitted yet: {reason}"
        case Cancel():
            return f"not cancelled yet: {reason}"
        case _:
            return f"not {type(step).__name__.lower()}n yet: {reason}"
