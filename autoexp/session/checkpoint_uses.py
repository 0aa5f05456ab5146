"""What is known in a session of its checkpoints, for the decision which of them stay."""

from autoexp.extensions.bases import OwnAction
from autoexp.retention.decision import Standing, standings
from autoexp.retention.policy import Retention
from autoexp.retention.uses import Situation, roll_back_rules
from autoexp.rules.actions import Delete, Keep, Launch, Measure, RunCommand
from autoexp.rules.events import CheckpointComplete
from autoexp.session.action_records import ActionRecord, ActionStatus
from autoexp.session.inbox import ActionRequest, RetryRequest, SubmitRequest, waiting_requests
from autoexp.session.session import Session
from autoexp.states import Verdict

UNWANTED = ("dropped: ", "not done: ")
"""How the reason of an action begins that somebody dropped, or whose conditions did not hold."""


def situation_of(session: Session, retention: Retention) -> Situation:
    """A session as the decision sees it, with the requests that wait in its inbox."""
    actions = session.actions.values()
    requests = waiting_requests(session.path)
    retried = {each.key for each in requests if isinstance(each, ActionRequest)}
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
            if isinstance(action.event, CheckpointComplete)
            if _may_act(action, is_retried=action.key in retried)
        ),
        launched_from=launched,
        may_roll_back=may_roll_back(session),
        requested=tuple(
            spec for each in requests if isinstance(each, SubmitRequest) for spec in each.jobs
        ),
        retried=frozenset(
            name
            for each in requests
            if isinstance(each, RetryRequest)
            for name in each.jobs or _failed(session)
        ),
    )


def _failed(session: Session) -> list[str]:
    return [name for name, job in session.jobs.items() if job.verdict is Verdict.FAILED]


def _may_act(action: ActionRecord, *, is_retried: bool) -> bool:
    """True if an action is still to be done, or has failed on its checkpoint and may be retried."""
    if isinstance(action.action, Measure | Delete):
        return False
    reads = isinstance(action.action, Launch | RunCommand | OwnAction)
    failed = action.status is ActionStatus.FAILED and reads
    is_wanted = is_retried or not (action.reason or "").startswith(UNWANTED)
    return not action.is_settled or (failed and is_wanted)


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
