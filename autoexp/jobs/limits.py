"""GPU hours that jobs have used, and limits: the budget, time limits, places in the queue."""

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from autoexp.model import now
from autoexp.states import Kind

if TYPE_CHECKING:  # an index is read without the models of records, which take longer to import
    from autoexp.jobs.budget import Budget
    from autoexp.jobs.record import Attempt, JobRecord
    from autoexp.jobs.spec import JobSpec


def spent(jobs: "Iterable[JobRecord]") -> float:
    """GPU hours that all attempts have held until now."""
    return sum(spent_gpu_hours(attempt) for job in jobs for attempt in job.attempts)


def over_budget(budget: "Budget", jobs: "Iterable[JobRecord]") -> str | None:
    """Reason the GPU-hour budget is exhausted, or None."""
    if budget.stop_above is None:
        return None
    return above(budget.stop_above, spent(jobs))


def above(most: float | None, hours: float) -> str | None:
    """Reason why nothing more is submitted when so many GPU hours are used, or None."""
    if most is None or hours <= most:
        return None
    return f"not submitted: {hours:.3g} GPU hours are used, above budget.stop_above ({most:g})"


def held(gpus: int, start: datetime, end: datetime) -> float:
    """GPUs times the hours from `start` to `end`."""
    return max(0.0, (end - start).total_seconds() / 3600) * gpus


def gpu_hours(attempt: "Attempt", start: datetime, end: datetime) -> float:
    """GPUs that the attempt holds times the hours from `start` to `end`."""
    return held(attempt.gpus, start, end)


def spent_gpu_hours(attempt: "Attempt") -> float:
    """From start to end, or to now, and what was spent before a requeue."""
    spent = settled_gpu_hours(attempt)
    if attempt.started_at is not None and attempt.ended_at is None:
        spent += gpu_hours(attempt, attempt.started_at, now())
    return spent


def settled_gpu_hours(attempt: "Attempt") -> float:
    """What no longer grows: from start to end, and what was spent before a requeue."""
    spent = attempt.earlier_gpu_hours
    if attempt.started_at is not None and attempt.ended_at is not None:
        spent += gpu_hours(attempt, attempt.started_at, attempt.ended_at)
    return spent


def time_limit(job: "JobRecord", parent: "JobRecord | None") -> float | None:
    """Time limit in minutes for the submission; None leaves it to the partition.

    A cooldown's limit is derived from its parent's measured seconds per iteration: short jobs
    start sooner, by SLURM's backfill.
    """
    machine, branch = job.spec.machine, job.spec.branch
    configured = job.spec.configured_limit_min
    if machine.kind != "slurm" or not is_measured(job.spec):
        return configured
    if branch is None or parent is None or parent.mean_seconds_per_iteration is None:
        return configured
    done = max([branch.iteration, *job.checkpoints]) - branch.iteration
    # An iteration of more samples, or of longer ones, takes as much longer.
    from autoexp.jobs.spec import pace

    each_s = parent.mean_seconds_per_iteration * pace(job.spec, parent.spec)
    training_s = (branch.target - branch.iteration - done) * each_s
    derived = machine.startup_min + training_s / 60 * machine.time_margin
    derived = max(derived, machine.warn_before_limit_s / 60 + 1)  # else it is warned as it starts
    return derived if configured is None else min(derived, configured)


def is_measured(spec: "JobSpec") -> bool:
    """True if the job's limit is derived from its parent's speed, which is not known beforehand."""
    machine = spec.machine
    return (
        machine.kind == "slurm"
        and spec.kind is Kind.COOLDOWN
        and spec.parent is not None
        and machine.cooldown_time_limit_min is None
    )


def chain_length(job: "JobRecord") -> int:
    """Number of a job's attempts that may be in the queue at once: only trunks are queued ahead."""
    machine = job.spec.machine
    if machine.kind == "slurm" and job.spec.kind is Kind.TRAIN:
        return machine.chain
    return 1


def room(budget: "Budget", most: int | None, jobs: "Iterable[JobRecord]") -> int | None:
    """Number of attempts that may still be submitted, of at most `most`; None: any number."""
    jobs = list(jobs)
    if over_budget(budget, jobs) is not None:
        return 0
    if most is None:
        return None
    return max(0, most - sum(len(job.open_attempts) for job in jobs))
