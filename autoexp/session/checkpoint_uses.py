"""What is known in a session of its checkpoints, for the decision which of them stay."""

from autoexp.retention.decision import Standing, standings
from autoexp.retention.policy import Retention
from autoexp.retention.uses import Situation, roll_back_rules
from autoexp.rules.actions import Delete, Keep, Launch, Measure
from autoexp.rules.events import CheckpointComplete
from autoexp.session.action_records import ActionRecord, ActionStatus
from autoexp.session.inbox import waiting_submissions
from autoexp.session.session import Session

UNWANTED = ("dropped: ", "not done: ")
"""How the reason of an action begins that somebody dropped, or whose conditions did not hold."""


def situation_of(session: Session, retention: Retention) -> Situation:
    """A session as the decision sees it, with the requests that wait in its inbox."""
    actions = session.actions.values()
    launched: dict[str, CheckpointComplete] = {}
    for name, job in session.jobs.items():
        action = session.actions.get(job.spec.launched_by or "")
        if action is not None and isinstance(action.event, CheckpointComplete):
            launched[name] = action.event
    return Situation(
        retention=retention,
        jobs=session.jobs,
        checkpoints=tuple(session.checkpoints()),
        pinned=frozenset(
            (action.action.job, action.event.iteration)
            for action in actions
            if isinstance(action.action, Keep)
            and isinstance(action.event, CheckpointComplete)
            and action.status is ActionStatus.DONE
            and session.is_valid(action.event)  # not of one that was set aside
        ),
        asked=tuple(
            (action.event, action.rule)
            for action in actions
            if isinstance(action.event, CheckpointComplete) and _may_act(action)
        ),
        launched_from=launched,
        may_roll_back=may_roll_back(session),
        requested=tuple(
            spec for request in waiting_submissions(session.path) for spec in request.jobs
        ),
    )


def _may_act(action: ActionRecord) -> bool:
    """True if an action is still to be done, or is a launch that failed and may be retried."""
    if isinstance(action.action, Measure | Delete):
        return False
    failed = action.status is ActionStatus.FAILED and isinstance(action.action, Launch)
    is_wanted = failed and not (action.reason or "").startswith(UNWANTED)
    return not action.is_settled or is_wanted


def may_roll_back(session: Session) -> frozenset[str]:
    """Names of the jobs that a rule may set back to an earlier checkpoint."""
    rules = roll_back_rules(session.experiment.monitoring)
    return frozenset(
        name
        for name, job in session.jobs.items()
        if any(rule.is_about(name, str(job.spec.kind)) for rule in rules)
    )


def checkpoints_of(session: Session) -> list[Standing]:
    """Every checkpoint with its reasons to stay; without `retention` each stays for good."""
    retention = session.experiment.retention
    if retention is None:
        return [Standing(event, ()) for event in session.checkpoints()]
    return standings(situation_of(session, retention))
