"""Cancelling the jobs of a session that nobody watches."""

import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from autoexp import inbox
from autoexp.backoff import delay_s
from autoexp.errors import SchedulerError
from autoexp.jobs import JobRecord
from autoexp.monitor import Monitor
from autoexp.schedulers.base import Scheduler, find_or_forbid
from autoexp.schedulers.choose import scheduler_for
from autoexp.session import Session

# SLURM gives a job KillWait (30 s by default) between SIGTERM and SIGKILL.
_PATIENCE_S = 90.0
_SHORTEST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 2.0


class Outcome(NamedTuple):
    """What came of it."""

    answers: dict[str, str]
    """What the scheduler answered, by the attempt's key."""
    problem: str | None = None
    """Why not all of them have ended; None: all have."""


def cancel_directly(
    path: Path, jobs: tuple[str, ...], by: str, patience_s: float = _PATIENCE_S
) -> Outcome:
    """Hold the session for as long as it takes to cancel `jobs` (all when empty).

    Attempts queued ahead of jobs that are over go too. Raises SessionHeld when a monitor is alive:
    it has to be asked instead.
    """
    with Session.hold(path) as (session, _):
        inbox.take_on(session)  # or what waits there would be submitted by the next monitor
        inbox.request_cancel(session, jobs, by)
        wanted = [session.jobs[name] for name in jobs or session.jobs]
        scheduler, monitor = scheduler_for(session.experiment), Monitor(session)
        answers: dict[str, str] = {}
        tries, deadline = 0, time.monotonic() + patience_s
        while True:
            problem = None
            try:
                answers |= _cancel(session, wanted, scheduler, answers)
                monitor.look(scheduler.query(monitor.tickets()))
            except SchedulerError as error:
                problem = str(error)
            alive = [job.spec.name for job in wanted if not job.is_over or job.open_attempts]
            if not alive:
                if not jobs:
                    inbox.drop_waiting(session, by)  # what the ends of the jobs called for
                return Outcome(answers)
            if time.monotonic() > deadline:
                return Outcome(answers, problem or f"{', '.join(alive)} have not ended yet")
            tries += 1
            time.sleep(delay_s(tries, _SHORTEST_PAUSE_S, _LONGEST_PAUSE_S))


def _cancel(
    session: Session, jobs: Iterable[JobRecord], scheduler: Scheduler, asked: Collection[str]
) -> dict[str, str]:
    """Cancel what is in the queue and has not been `asked` to end; what SLURM answered, by key."""
    tickets = []
    for job in jobs:
        _settle_intent(session, job, scheduler)
        tickets += [session.ticket(attempt) for attempt in job.open_attempts]
    answers = scheduler.cancel([ticket for ticket in tickets if ticket.key not in asked])
    session.record_answers(answers)
    return answers


def _settle_intent(session: Session, job: JobRecord, scheduler: Scheduler) -> None:
    """An attempt that may have been submitted is looked up; one that was not is withdrawn."""
    attempt = job.unsubmitted
    if attempt is None:
        return
    job_id = find_or_forbid(session.submission_ticket(attempt), attempt, scheduler)
    if job_id is not None:
        session.record_submission(job, attempt, job_id)
    else:
        session.withdraw(job, attempt)
