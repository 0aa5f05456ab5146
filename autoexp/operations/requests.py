"""Processes requests of `autoexp.session.inbox`: the monitor applies them to the session's records.

A request is processed within two ticks; that is repeatable, so a kill between the effect and the
removal of the file does no harm.
"""

import uuid
from pathlib import Path

from autoexp.errors import BadInput, SessionHeld
from autoexp.model import now
from autoexp.operations.on_request import save
from autoexp.operations.retry import left_out, retry
from autoexp.rules.actions import Start
from autoexp.rules.events import JobAdded, RequestRefused
from autoexp.session.action_records import ActionRecord, ActionStatus
from autoexp.session.inbox import (
    _LEFT,
    _TRIES,
    ActionRequest,
    BudgetRequest,
    CancelRequest,
    Request,
    RetryRequest,
    SaveRequest,
    SubmitRequest,
    _in_words,
    _read,
    _waiting,
)
from autoexp.session.session import Session
from autoexp.storage import atomic


def process_requests(session: Session) -> list[str]:
    """Process all waiting requests; returns a log line for each. For the monitor.

    Raises OSError while one cannot be processed for a transient reason.
    """
    notes: list[str] = []
    problem: OSError | None = None
    for path in _waiting(session.path):
        if session.requests_left.get(path.name) == _LEFT:
            continue
        # With the removal: one that has lost the lease takes nothing away from its successor.
        with session.writing():
            try:
                notes += _process(session, path)
            except OSError as error:
                failures = session.requests_left.get(path.name, 0) + 1
                session.requests_left[path.name] = min(failures, _LEFT - 1)
                if failures < _TRIES:
                    raise
                problem = error  # those behind it have waited long enough
    if problem is not None and not notes:
        raise problem
    return notes


def _process(session: Session, path: Path) -> list[str]:
    try:
        note = _apply(session, _read(path))
    except SessionHeld:
        raise
    except Exception as error:
        if isinstance(error, OSError) and atomic.is_passing(error):
            raise
        # Whatever it is: no request may block the session, or the requests after it.
        reason = str(error) if isinstance(error, BadInput) else repr(error)
        return _refuse(session, path, reason)
    try:
        path.unlink()
    except OSError as error:
        if atomic.is_passing(error):
            raise
        # It would be processed at every look.
        session.requests_left[path.name] = _LEFT
        return [note, f"{path}: processed, but cannot be removed ({error.strerror}): remove it"]
    return [note]


def _refuse(session: Session, path: Path, reason: str) -> list[str]:
    """Move a refused request out of the inbox and keep it for its author; record that once."""
    refused = RequestRefused(job="", request=_in_words(path), reason=reason)
    is_new = session.record([refused])
    stem = path.name.encode(errors="surrogateescape")[:200].decode(errors="surrogateescape")
    target = path.with_name(f"{stem.removesuffix('.json')}.refused")
    if target.exists():
        target = target.with_name(f"{target.stem}-{uuid.uuid4().hex[:8]}.refused")
    try:
        path.rename(target)
    except OSError as error:
        if atomic.is_passing(error):
            raise
        # It stays where it is; others are processed all the same.
        session.requests_left[path.name] = _LEFT
    return [f"request refused: {reason}"] if is_new else []


def _apply(session: Session, request: Request) -> str:
    match request:
        case CancelRequest():
            names = request_cancel(session, request.jobs, request.by)
            return f"{request.by}: cancels {', '.join(names) or 'nothing: all jobs have ended'}"
        case SubmitRequest():
            return add_jobs(session, request)
        case ActionRequest():
            return _change_action(session, request)
        case RetryRequest():
            names = retry(session, request.jobs, request.by)
            note = f"{request.by}: retries {', '.join(names) or 'nothing: no job has failed'}"
            return "; ".join([note, *({} if request.jobs else left_out(session)).values()])
        case SaveRequest():
            return save.ask(session, request)
        case BudgetRequest(stop_above=most):
            _change_budget(session, most)
            return (
                f"{request.by}: sets budget.stop_above to {'none' if most is None else f'{most:g}'}"
            )


def request_cancel(session: Session, jobs: tuple[str, ...], by: str) -> list[str]:
    """Record the cancellation of jobs; returns those that were not over yet."""
    found = []
    for name in jobs or tuple(session.jobs):
        job = session.jobs.get(name)
        if job is None or job.is_over:
            continue
        found.append(name)
        if job.cancel_requested is None:
            session.change_job(job, cancel_requested=by)
    if not jobs:
        drop_pending_actions(session, by)
    return found


def drop_pending_actions(session: Session, by: str) -> None:
    """Drop all pending actions: nothing more is wanted of the session."""
    for action in session.pending_actions():
        if action.status is ActionStatus.PENDING:
            session.change_action(action, status=ActionStatus.FAILED, reason=f"dropped: {by}")


def add_jobs(session: Session, request: SubmitRequest) -> str:
    """Add jobs to the session, all of them or none; repeatable. Raises BadInput for a clash."""
    attempt, first = request.attempt, request.jobs[0]
    if attempt is not None and attempt.key != session.meta.key(first.name, 1):
        raise BadInput(f"{attempt.key}: not the key of an attempt at {first.name}")
    for spec in request.jobs:
        # All of them or none: a clash with the last one must not leave the first ones here.
        session.refuse_clash(spec)
    for position, spec in enumerate(request.jobs):
        session.add_job(spec, request.attempt if position == 0 else None)
        # Repeated after a kill in between, the event has the same key and is recorded once.
        session.record([JobAdded(job=spec.name, by=request.by)])
    session.list_jobs()
    return f"{request.by}: adds {', '.join(spec.name for spec in request.jobs)}"


def _change_budget(session: Session, most: float | None) -> None:
    budget = session.experiment.budget.model_copy(update={"stop_above": most})
    session.meta.experiment = session.experiment.model_copy(update={"budget": budget})
    session.save_meta()


def _change_action(session: Session, request: ActionRequest) -> str:
    action = session.actions.get(request.key)
    if action is None:
        raise BadInput(f"{request.key}: no such action; `autoexp queue {session.id}` lists them")
    if request.verb == "drop":
        return _drop(session, action, request.by)
    return _retry(session, action, request.by)


def _drop(session: Session, action: ActionRecord, by: str) -> str:
    if action.status in (ActionStatus.RUNNING, ActionStatus.DONE):
        raise BadInput(f"{action.key}: is {action.status}; cancel its job instead")
    session.change_action(action, status=ActionStatus.FAILED, reason=f"dropped: {by}")
    return f"{by}: drops {action.key}"


def _retry(session: Session, action: ActionRecord, by: str) -> str:
    if isinstance(action.action, Start):
        job = session.jobs[action.action.job]
        if job.cancel_requested is not None:
            raise BadInput(f"{action.key}: {job.spec.name} has been cancelled")
        _refuse_if_under_way(action)
        if job.is_over and not job.launched:
            session.change_job(job, verdict=None, reason=None)
    _refuse_if_under_way(action)
    # Deadlines count from now: a person has looked at it.
    changes = {"status": ActionStatus.PENDING, "reason": None, "result": None}
    session.change_action(action, **changes, asked_at=now(), attempt=None)
    return f"{by}: retries {action.key}"


def _refuse_if_under_way(action: ActionRecord) -> None:
    if action.status in (ActionStatus.RUNNING, ActionStatus.DONE):
        raise BadInput(f"{action.key}: is {action.status}; only a failed action can be retried")
