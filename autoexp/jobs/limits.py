"""Limits of a job: its time limit, and its places in the queue."""

from collections.abc import Iterable

from autoexp.jobs.budget import Budget
from autoexp.jobs.gpu_hours import over_budget
from autoexp.jobs.record import JobRecord
from autoexp.jobs.spec import JobSpec, pace
from autoexp.resources.machines import SlurmCluster
from autoexp.states import Kind


def time_limit(job: JobRecord, parent: JobRecord | None) -> float | None:
    """Time limit in minutes for the submission; None leaves it to the partition.

    A cooldown's limit is derived from its parent's measured seconds per iteration: short jobs
    start sooner, by SLURM's backfill.
    """
    machine, branch = job.spec.machine, job.spec.branch
    configured = job.spec.configured_limit_min
    if not isinstance(machine, SlurmCluster) or not is_measured(job.spec):
        return configured
    if branch is None or parent is None or parent.mean_seconds_per_iteration is None:
        return configured
    done = max([branch.iteration, *job.checkpoints]) - branch.iteration
    # An iteration of more samples, or of longer ones, takes as much longer.
    each_s = parent.mean_seconds_per_iteration * pace(job.spec, parent.spec)
    training_s = (branch.decay_iterations - done) * each_s
    derived = machine.startup_min + training_s / 60 * machine.time_margin
    derived = max(derived, machine.warn_before_limit_s / 60 + 1)  # else it is warned as it starts
    return derived if configured is None else min(derived, configured)


def is_measured(spec: JobSpec) -> bool:
    """True if the job's limit is derived from its parent's speed, which is not known beforehand."""
    machine = spec.machine
    return (
        isinstance(machine, SlurmCluster)
        and spec.kind is Kind.COOLDOWN
        and spec.parent is not None
        and machine.cooldown_time_limit_min is None
    )


def chain_length(job: JobRecord) -> int:
    """Number of a job's attempts that may be in the queue at once: only trunks are queued ahead."""
    machine = job.spec.machine
    if isinstance(machine, SlurmCluster) and job.spec.kind is Kind.TRAIN:
        return machine.chain
    return 1


def room(budget: Budget, most: int | None, jobs: Iterable[JobRecord]) -> int | None:
    """Number of attempts that may still be submitted, of at most `most`; None: any number."""
    jobs = list(jobs)
    if over_budget(budget, jobs) is not None:
        return 0
    if most is None:
        return None
    return max(0, most - sum(len(job.open_attempts) for job in jobs))
