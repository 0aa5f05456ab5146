"""Cancelling the jobs of a session that nobody watches."""

import time
from pathlib import Path
from typing import NamedTuple

from autoexp import inbox
from autoexp.jobs import JobRecord
from autoexp.monitor import Monitor
from autoexp.schedulers.base import Scheduler
from autoexp.schedulers.choose import scheduler_for
from autoexp.session import Session

_PATIENCE_S = 20.0


class Outcome(NamedTuple):
    """What came of it."""

    answers: dict[str, str]
    """What the scheduler answered, by the attempt's key."""
    over: bool
    """Whether all of the jobs have ended."""


def cancel_directly(path: Path, jobs: tuple[str, ...], by: str) -> Outcome:
    """Hold the session for as long as it takes to cancel `jobs` (all when empty).

    Raises SessionHeld when a monitor is alive: it has to be asked instead.
    """
    with Session.hold(path) as (session, _):
        names = inbox.request_cancel(session, jobs, by)
        wanted = [session.jobs[name] for name in names]
        scheduler = scheduler_for(session.experiment)
        for job in wanted:
            _settle_intent(session, job, scheduler)
        tickets = [
            session.ticket(attempt)
            for job in wanted
            for attempt in job.open_attempts
            if attempt.job_id is not None
        ]
        answers = scheduler.cancel(tickets)
        monitor = Monitor(session)
        deadline = time.monotonic() + _PATIENCE_S
        while not all(job.is_over for job in wanted):
            monitor.look(scheduler.query(monitor.tickets()))
            if time.monotonic() > deadline:
                return Outcome(answers, over=False)
            time.sleep(0.25)
    return Outcome(answers, over=True)


def _settle_intent(session: Session, job: JobRecord, scheduler: Scheduler) -> None:
    """An attempt that may have been submitted is looked up; one that was not is withdrawn."""
    attempt = job.unsubmitted
    if attempt is None:
        return
    job_id = scheduler.find(session.submission_ticket(attempt), in_flight=False)
    if job_id is not None and attempt.array_index is not None:
        job_id = f"{job_id}_{attempt.array_index}"
    if job_id is not None:
        session.record_submission(job, attempt, job_id)
    else:
        session.withdraw(job, attempt)
