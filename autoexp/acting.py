"""What actions do to the session's records, each step written down before and after."""

from autoexp.errors import SessionError
from autoexp.jobs import JobRecord
from autoexp.rules import ActionRecord, ActionStatus
from autoexp.session import Session


def begin(session: Session, action: ActionRecord) -> JobRecord:
    """Note that an action is under way and return the job that it launches."""
    job = session.jobs.get(action.action.job)
    if job is None:
        raise SessionError(f"{action.key}: launches {action.action.job}, which is not a job here")
    session.change_action(action, status=ActionStatus.RUNNING, attempts=action.attempts + 1)
    return job


def complete(session: Session, action: ActionRecord, job: JobRecord) -> None:
    """Release the launched job for submission, then note that the action is done.

    A kill in between repeats the action, which finds the job launched and changes nothing.
    """
    if not job.launched:
        session.change_job(job, launched=True)
    session.change_action(action, status=ActionStatus.DONE, reason=None)


def fail(session: Session, action: ActionRecord, reason: str) -> None:
    """Note why an action failed; `autoexp queue` shows it."""
    session.change_action(action, status=ActionStatus.FAILED, reason=reason)


def postpone(session: Session, action: ActionRecord, reason: str) -> None:
    """Note why an action has to be done again in a while."""
    session.change_action(action, status=ActionStatus.PENDING, reason=f"tried again: {reason}")
