"""Events of a session as a whole: all trainings finished, a budget passed."""

from collections.abc import Mapping, Sequence

from autoexp.jobs.gpu_hours import over_budget, spent
from autoexp.rules.events import AttemptJudged, BudgetPassed, Event, JobGivenUp, TrunksFinished
from autoexp.rules.rules import SessionRule
from autoexp.session.session import Session
from autoexp.states import Kind, Verdict

_STOP = "budget.stop_above"


def overview(
    session: Session, rules: Mapping[str, SessionRule], fresh: Sequence[Event]
) -> list[Event]:
    """Events of the whole session; only those that a rule asks for are computed."""
    found: list[Event] = []
    judged = any(isinstance(event, AttemptJudged | JobGivenUp) for event in fresh)
    if judged and any(rule.trunks_finished for rule in rules.values()):
        trunks = [job for job in session.jobs.values() if job.spec.kind is Kind.TRAIN]
        if trunks and all(job.verdict is Verdict.FINISHED for job in trunks):
            found.append(TrunksFinished(trunks=len(trunks)))
    for name, rule in rules.items():
        if rule.gpu_hours_above is not None and not session.journal.has(f"budget/{name}"):
            hours = spent(session.jobs.values())
            if hours > rule.gpu_hours_above:
                found.append(BudgetPassed(rule=name, gpu_hours=round(hours, 3)))
    jobs = session.jobs.values()
    passed = over_budget(session.experiment.budget, jobs) is not None
    if passed and not session.journal.has(f"budget/{_STOP}"):
        found.append(BudgetPassed(rule=_STOP, gpu_hours=round(spent(jobs), 3)))
    return found
