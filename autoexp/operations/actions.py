"""Applies actions to the session; every step is journaled and repeatable.

Every function can be called again after a kill at any line: it finds what it did, and goes on.
"""

from collections.abc import Mapping
from datetime import timedelta

from autoexp.errors import SessionError
from autoexp.jobs.record import Ending, JobRecord, RestartRequest
from autoexp.model import now
from autoexp.monitor.recorder import Recorder
from autoexp.monitor.session_events import filled
from autoexp.operations import requests
from autoexp.rules.actions import (
    ENDS_AN_ATTEMPT,
    Cancel,
    ExcludeNodes,
    Fail,
    Finish,
    Keep,
    Publish,
    Restart,
    Start,
)
from autoexp.rules.events import (
    CheckpointComplete,
    LogMatched,
    MetricAlarm,
    Published,
    RestartAsked,
)
from autoexp.session.action_records import ActionRecord, ActionStatus
from autoexp.session.session import ExcludedNode, Session
from autoexp.states import Verdict
from autoexp.templates import fill

Values = Mapping[str, str]


def begin(session: Session, action: ActionRecord) -> JobRecord | None:
    """Record that an action is running, and return its job, if it has one."""
    name = action.action.job if isinstance(action.action, Start | Keep) else action.event.job
    job = session.jobs.get(name)
    if job is None and isinstance(action.action, (Start, Keep, *ENDS_AN_ATTEMPT)):
        raise SessionError(f"{action.key}: its job {name or '(none)'} is not in this session")
    attempt = action.attempt
    if attempt is None and job is not None and isinstance(action.action, ENDS_AN_ATTEMPT):
        attempt = getattr(action.event, "attempt", None) or _current(job)
    status = ActionStatus.RUNNING
    session.change_action(action, status=status, attempts=action.attempts + 1, attempt=attempt)
    return job


def _current(job: JobRecord) -> int | None:
    return job.attempt.number if job.attempt else None


def complete(session: Session, action: ActionRecord, job: JobRecord) -> None:
    """Release the started job for submission, then record that the action is done.

    A kill in between repeats the action, which finds the job launched and changes nothing.
    """
    if not job.launched:
        parent = session.jobs.get(job.spec.parent or "")
        logs_loss = parent is not None and parent.logs_loss and job.spec.branch is not None
        spec = filled(session, job.spec)
        session.change_job(job, launched=True, logs_loss=logs_loss, spec=spec)
    done(session, action)


def done(session: Session, action: ActionRecord, result: str | None = None) -> None:
    """Record that the action is done, with its result."""
    session.change_action(action, status=ActionStatus.DONE, reason=None, result=result)


def fail(session: Session, action: ActionRecord, reason: str, result: str | None = None) -> None:
    """Record why an action failed, or was dropped; `autoexp queue` shows it."""
    session.change_action(action, status=ActionStatus.FAILED, reason=reason, result=result)


def postpone(session: Session, action: ActionRecord, reason: str) -> None:
    """Record why an action is retried later."""
    session.change_action(action, status=ActionStatus.PENDING, reason=f"retrying: {reason}")


def wait(session: Session, action: ActionRecord, reason: str) -> None:
    """Record what a pending action waits for; written when that changes, not at every look."""
    if action.reason != reason:
        session.change_action(action, reason=reason)


# Restarts


def ask_restart(recorder: Recorder, action: ActionRecord) -> str:
    """Record that an attempt is to be replaced; the job's next steps do the rest.

    Several rules may request it: there is one restart, from the earliest requested checkpoint.
    Raises SessionError when the attempt has ended already, or nothing is there to go back to.
    """
    session = recorder.session
    asked, job, number = action.action, session.jobs[action.event.job], action.attempt
    assert isinstance(asked, Restart)
    if number is None:
        raise SessionError(f"{job.spec.name}: has no attempt yet")
    result = f"attempt {number} restarts"
    if job.restarted.get(number) == action.key:
        return result
    standing = job.restart if job.restart and job.restart.attempt == number else None
    if standing is None:
        if job.ending is not None:  # `fail` and `finish` overrule it, before and after they end it
            return f"nothing: before, it was decided: {job.ending.verdict} ({job.ending.reason})"
        _refuse_if_settled(job, number)
    if asked.exclude_nodes == "blamed":
        _exclude(session, action, _named_nodes(session, action), 86400.0)
    request = _request(job, action, asked, standing)
    if request == standing or (standing is not None and _is_settled(job, number)):
        return f"{result} already, for {job.restarted[number]}"
    back = request.roll_back_to
    event = RestartAsked(
        job=job.spec.name, attempt=number, roll_back_to=back, reason=request.reason
    )
    recorder.record_and_decide([event])
    changes: dict[str, object] = {
        "restart": request,
        "restarted": {number: action.key, **job.restarted},
    }
    if back is not None and (standing is None or back != standing.roll_back_to):
        _taint(session, job, back)
        changes["checkpoints"] = [at for at in job.checkpoints if at <= back]
        changes["roll_backs"] = [*job.roll_backs, back]
        changes["deleted"] = [at for at in job.deleted if at <= back]
    session.change_job(job, **changes)
    return result if back is None else f"{result} from iteration {back}"


def _request(
    job: JobRecord, action: ActionRecord, asked: Restart, standing: RestartRequest | None
) -> RestartRequest:
    """Combine a new restart request with an earlier one."""
    back = _last_good(job, action) if asked.roll_back else None
    if standing is None:
        return RestartRequest(
            attempt=action.attempt or 0,
            action=action.key,
            reason=f"rule {action.rule}",
            roll_back_to=back,
            backend=asked.backend,
        )
    backs = [x for x in (back, standing.roll_back_to) if x is not None]
    changes = {
        "roll_back_to": min(backs, default=None),
        "backend": {**standing.backend, **asked.backend},
    }
    return standing.model_copy(update=changes)


def _is_settled(job: JobRecord, number: int) -> bool:
    return any(a.number == number and a.verdict is not None for a in job.attempts)


def _refuse_if_settled(job: JobRecord, number: int) -> None:
    attempt = next((a for a in job.attempts if a.number == number), None)
    if job.is_over:
        raise SessionError(f"{job.spec.name}: is over ({job.reason})")
    if attempt is None or attempt.verdict is not None:
        raise SessionError(f"{job.spec.name}: attempt {number} has ended already")


def _last_good(job: JobRecord, action: ActionRecord) -> int:
    """The checkpoint to resume from: the last one before the trouble began."""
    match action.event:
        case MetricAlarm(last_good=None):
            # Not one good iteration since its start: the checkpoint of the start is suspect too.
            limit = (job.attempt.first_iteration or 0) - 1 if job.attempt else -1
        case MetricAlarm(last_good=int(iteration)) | LogMatched(iteration=int(iteration)):
            limit = iteration
        case _:
            limit = job.saved_iteration
    # A branch's own start is its parent's checkpoint: there is nothing before that.
    start = [job.spec.branch.iteration] if job.spec.branch else []
    good = [*start, *(iteration for iteration in job.checkpoints if iteration <= limit)]
    if not good:
        raise SessionError(
            f"{job.spec.name}: no checkpoint at or before iteration {max(limit, 0)} to roll back to"
        )
    return max(good)


def _taint(session: Session, parent: JobRecord, back: int) -> None:
    """Hold waiting cooldowns from checkpoints after `back`, and mark the others as tainted."""
    for action in session.pending_actions():
        event = action.event
        if (
            isinstance(action.action, Start | Keep)
            and isinstance(event, CheckpointComplete)
            and (event.job, action.status) == (parent.spec.name, ActionStatus.PENDING)
            and event.iteration > back
        ):
            why = f"{parent.spec.name} was rolled back to {back}: the checkpoint is set aside"
            fail(session, action, why)
    for job in session.jobs.values():
        last = job.spec.starts_at
        if last is None or job.spec.parent != parent.spec.name or last <= back:
            continue
        started = any(
            isinstance(a.action, Start)
            and a.action.job == job.spec.name
            and a.status in (ActionStatus.RUNNING, ActionStatus.DONE)
            for a in session.actions.values()
        )
        if started and job.tainted is None:
            what = "merged up to" if job.spec.merge else "branched from"
            why = f"{what} {last}, before {parent.spec.name} went back to {back}"
            session.change_job(job, tainted=why)


def replaced(session: Session, job: JobRecord, spec_changes: Mapping[str, object]) -> None:
    """Complete a restart, in one write: from here on the next attempt may be submitted."""
    assert job.restart is not None
    changes: dict[str, object] = {"restart": None}
    if spec_changes:
        changes["spec"] = job.spec.model_copy(update=dict(spec_changes))
    if job.restart.roll_back_to is not None:
        changes |= {"iteration": job.restart.roll_back_to, "loss": None, "learning_rate": None}
    session.change_job(job, **changes)


# Endings


def ask_ending(session: Session, action: ActionRecord, reason: str) -> str:
    """Record that a job is to end, with its verdict."""
    job = session.jobs[action.event.job]
    assert isinstance(action.action, Finish | Fail)
    verdict = Verdict.FINISHED if isinstance(action.action, Finish) else Verdict.FAILED
    if job.ending is not None and job.ending.action == action.key:
        return str(verdict)
    if job.is_over:
        raise SessionError(f"{job.spec.name}: is over ({job.reason})")
    if verdict is Verdict.FINISHED and not job.attempts:
        raise SessionError(f"{job.spec.name}: has not started, so it cannot count as finished")
    why = reason or f"rule {action.rule}"
    session.change_job(job, ending=Ending(verdict=verdict, action=action.key, reason=why))
    return str(verdict)


def ask_cancel(session: Session, action: ActionRecord, values: Values) -> str:
    """Record the cancellation of jobs; by default of the event's job, or of all."""
    asked = action.action
    assert isinstance(asked, Cancel)
    wanted = {fill(name, values) for name in asked.jobs} or {action.event.job}
    names = [
        name
        for name, job in session.jobs.items()
        if "" in wanted or name in wanted or str(job.spec.kind) in wanted
    ]
    reason = fill(asked.reason, values)
    by = f"rule {action.rule}" + (f": {reason}" if reason else "")
    cancelled = requests.request_cancel(session, tuple(names), by) if names else []
    return f"cancels {', '.join(cancelled) or 'nothing'}"


# Nodes


def exclude_nodes(session: Session, action: ActionRecord, values: Values) -> str:
    """Exclude nodes from the session's submissions; returns the action's result."""
    asked = action.action
    assert isinstance(asked, ExcludeNodes)
    nodes = [fill(node, values) for node in asked.nodes] or _named_nodes(session, action)
    _exclude(session, action, nodes, asked.expires)
    return f"avoids {', '.join(nodes)}" if nodes else "the event names no node: nothing excluded"


def _named_nodes(session: Session, action: ActionRecord) -> list[str]:
    """The node that the event captured as `node`, else the attempt's only node."""
    event = action.event
    if isinstance(event, LogMatched) and event.values.get("node"):
        return [str(event.values["node"])]
    job = session.jobs.get(event.job)
    number = getattr(event, "attempt", None)
    attempts = [a for a in job.attempts if a.number == number] if job else []
    nodes = attempts[0].nodes if attempts else None
    return [nodes] if nodes and not set(nodes) & set("[],") else []


def _exclude(session: Session, action: ActionRecord, nodes: list[str], expires_s: float) -> None:
    until = now() + timedelta(seconds=expires_s)
    with session.writing():
        session.excluded.add(
            ExcludedNode(
                node=node, evidence=action.event.key, reason=f"rule {action.rule}", until=until
            )
            for node in nodes
        )


def publish(recorder: Recorder, action: ActionRecord, payload: dict[str, str]) -> None:
    """Record a published event, so that the session's own rules react to it."""
    assert isinstance(action.action, Publish)
    job, name = action.event.job, action.action.name
    event = Published(job=job, name=name, payload=payload, action=action.key)
    recorder.record_and_decide([event])
