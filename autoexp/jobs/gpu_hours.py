"""GPU hours that jobs have used, and whether there is room for more."""

from collections.abc import Iterable

from autoexp.jobs.budget import Budget
from autoexp.jobs.spec import JobRecord, spent_gpu_hours


def spent(jobs: Iterable[JobRecord]) -> float:
    """GPU hours that all attempts have held until now."""
    return sum(spent_gpu_hours(attempt) for job in jobs for attempt in job.attempts)


def over_budget(budget: Budget, jobs: Iterable[JobRecord]) -> str | None:
    """Why nothing more is launched, in words; None while there is room in the budget."""
    most = budget.stop_above
    if most is None or (hours := spent(jobs)) <= most:
        return None
    return f"not launched: {hours:.3g} GPU hours are spent, above budget.stop_above ({most:g})"
