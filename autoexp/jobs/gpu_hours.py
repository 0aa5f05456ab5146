"""GPU hours that jobs have used, and the check against the budget."""

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from autoexp.model import now

if TYPE_CHECKING:
    from autoexp.jobs.budget import Budget
    from autoexp.jobs.record import Attempt, JobRecord


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
