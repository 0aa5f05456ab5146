"""The next step of a job, as a value: submit, withdraw, replace, cancel, give back, or nothing.

`next_step` is pure. The monitor asks it for every job that changed and hands the steps over as
values; `autoexp.operations.step_runs.carry_out` does them.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from autoexp.jobs.limits import chain_length
from autoexp.jobs.record import Attempt, JobRecord
from autoexp.resources.machines import SlurmCluster

JobGroup = list[JobRecord]


class Submit(NamedTuple):
    """Submit jobs: one, or several as an array."""

    jobs: tuple[str, ...]
    as_array: bool = False


class Withdraw(NamedTuple):
    """Withdraw an intended attempt that is no longer wanted, or find its job id."""

    jobs: tuple[str]


class Replace(NamedTuple):
    """Replace the attempt: the last steps of a restart, once nothing of the job is alive."""

    jobs: tuple[str]


class CancelAttempts(NamedTuple):
    """Cancel the attempts of jobs, all in one command."""

    jobs: tuple[str, ...]


class GiveBack(NamedTuple):
    """Give back the slots of a pool that a job needs no longer."""

    jobs: tuple[str]


NextStep = Submit | Withdraw | Replace | CancelAttempts | GiveBack


def next_step(job: JobRecord, asked: Collection[str] = ()) -> NextStep | None:
    """The next step of a job; None if it needs nothing now.

    ``asked` are the keys of the attempts whose cancellation was requested.
    """
    name = job.spec.name
    if to_cancel(job, asked):
        return CancelAttempts((name,))
    if job.may_be_replaced:
        return Replace((name,))
    if job.has_slots_left_over:
        return GiveBack((name,))
    attempt = job.unsubmitted
    if not job.launched:
        return None
    if attempt is not None:
        return (
            Withdraw((name,)) if job.is_ending else Submit((name,), intended_array(job) is not None)
        )
    if job.wants_attempt(chain_length(job)):
        return Submit((name,), can_join(job))
    return None


def to_cancel(job: JobRecord, asked: Collection[str] = ()) -> list[Attempt]:
    """Queued attempts to cancel, of a job that ends or restarts, and those queued ahead."""
    if not job.is_ending:
        return []
    return [
        attempt
        for attempt in job.open_attempts
        if attempt.job_id is not None and attempt.key not in asked
    ]


def intended_array(job: JobRecord) -> str | None:
    """Name of the array in which the job's intended attempt is to be submitted."""
    attempt = job.unsubmitted
    return attempt.name if attempt is not None and attempt.array_index is not None else None


def together(
    steps: Iterable[NextStep], jobs: Mapping[str, JobRecord], longest: int
) -> list[NextStep]:
    """Combine steps that go in one command: cancellations, and the tasks of an array.

    ``longest` is the number of tasks that an array may have.
    """
    cancelled: list[str] = []
    tasks: list[JobRecord] = []
    found: list[NextStep] = []
    for step in steps:
        match step:
            case CancelAttempts(names):
                cancelled += names
            case Submit(names, as_array=True):
                tasks += [jobs[name] for name in names]
            case _:
                found.append(step)
    if cancelled:
        found.append(CancelAttempts(tuple(cancelled)))
    for group in groups(tasks, longest):
        is_array = len(group) > 1 or group[0].unsubmitted is not None
        found.append(Submit(tuple(job.spec.name for job in group), as_array=is_array))
    return found


def groups(jobs: Iterable[JobRecord], longest: int) -> list[JobGroup]:
    """Group jobs that can go as one array; a group of one goes alone.

    Attempts intended as an array and not submitted stay together. `longest` is SLURM's
    MaxArraySize, which bounds the index too.
    """
    begun: dict[str, JobGroup] = {}
    fresh: dict[tuple[str, str], JobGroup] = {}
    alone: list[JobGroup] = []
    for job in jobs:
        if (array := intended_array(job)) is not None:
            begun.setdefault(array, []).append(job)
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
    """True if a job can be a task of an array: it is submitted for the first time."""
    machine = job.spec.machine
    if not isinstance(machine, SlurmCluster) or not machine.arrays or job.attempts:
        return False
    return job.wanted_slots is None  # each waits for its own


def not_done(step: NextStep, reason: str) -> str:
    """The warning of a job while a step of it fails."""
    match step:
        case Submit():
            return f"not submitted yet: {reason}"
        case CancelAttempts():
            return f"not cancelled yet: {reason}"
        case GiveBack():
            return f"its slots are not given back yet: {reason}"
        case _:
            return f"not {type(step).__name__.lower()}n yet: {reason}"
