"""Confirmation of expensive plans, and the one-line summary of a plan."""

from collections import Counter

from autoexp.config.compose import Composed
from autoexp.config.sweep_names import as_word
from autoexp.planning.plan import Plan


def above_budget(composed: Composed, found: Plan) -> str | None:
    """The question for confirming an expensive plan; None when none is needed."""
    most = composed.experiment.budget.confirm_above
    hours = found.hours
    if most is None or (hours.gpu_hours <= most and not hours.unknown):
        return None
    return f"{headline(found)}: budget.confirm_above is {most:g} GPU hours"


def headline(plan: Plan) -> str:
    """Counts and hours: `18 jobs: 6 train, 12 cooldown; 3.20 GPU hours`."""
    counts = Counter(str(job.kind) for job in plan.jobs)
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    points = len({as_word(job.settings) for job in plan.jobs if job.settings})
    swept = f"{points} points, " if points else ""
    by_rules = sum(each.count for each in plan.launches)
    more = f", and {by_rules} launched by rules" if by_rules else ""
    return f"{swept}{len(plan.jobs)} jobs: {kinds}{more}; {plan.hours}"
