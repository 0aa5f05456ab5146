"""When the scheduler knows no more of a job than its log shows."""

import math
from collections.abc import Iterable, Mapping

from autoexp import states
from autoexp.jobs.record import JobRecord
from autoexp.monitor.job_watch import JobWatch

_NEAR_END_S = 120.0
"""The last part of a job, in which the scheduler is asked often: what follows waits for its end."""


def are_calm(jobs: Iterable[JobRecord], watches: Mapping[str, JobWatch]) -> bool:
    """True if all attempts are running, and will be for a while, as far as their logs show."""
    return all(_is_calm(job, watches.get(job.spec.name)) for job in jobs if job.open_attempts)


def _is_calm(job: JobRecord, watch: JobWatch | None) -> bool:
    return (
        watch is not None
        and watch.moves_steadily()
        and all(states.is_running(attempt.state) for attempt in job.open_attempts)
        and not job.is_ending
        and _left_s(job) > _NEAR_END_S
    )


def _left_s(job: JobRecord) -> float:
    """Seconds until a job has reached its target, as fast as it is; endless where none is known."""
    target, speed = job.spec.target_iteration, job.mean_seconds_per_iteration
    if target is None or speed is None:
        return math.inf
    return max(0, target - (job.iteration or 0)) * speed
