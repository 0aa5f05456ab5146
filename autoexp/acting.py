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
    action.status = ActionStatus.RUNNING
    action.attempts += 1
    session.save_action(action)
    return job


def complete(session: Session, action: ActionRecord, job: JobRecord) -> None:
    """Release the launched job for submission, then note that the action is done.

    A kill in between repeats the action, which finds the job launched and changes nothing.
    """
    if not job.launched:
        session.change_job(job, launched=True)
    action.status, action.reason = ActionStatus.DONE, None
    session.save_action(action)


def fail(session: Session, action: ActionRecord, reason: str) -> None:
    """Note why an action failed; `autoexp queue` shows it."""
    action.status, action.reason = ActionStatus.FAILED, reason
    session.save_action(action)
