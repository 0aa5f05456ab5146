"""Cancels the jobs of a session without a monitor."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from autoexp.backoff import delay_s
from autoexp.errors import SchedulerError
from autoexp.jobs.record import Attempt, JobRecord
from autoexp.monitor.monitor import Monitor
from autoexp.monitor.steps import CancelAttempts, NextStep, Withdraw, next_step, together
from autoexp.operations import requests
from autoexp.operations.phases import Phase, do, in_turns
from autoexp.operations.step_runs import Cancellation, carry_out
from autoexp.rules.events import CancelAnswered
from autoexp.schedulers.base import NOT_OURS, Scheduler
from autoexp.schedulers.registry import scheduler_for
from autoexp.session.session import Session

# SLURM gives a job KillWait (30 s by default) between SIGTERM and SIGKILL.
_PATIENCE_S = 90.0
_NAMED = 3
_SHORTEST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 2.0
# The outcome is returned: the caller reports it.
_LOG = logging.getLogger(__name__)
_LOG.addHandler(logging.NullHandler())


class Outcome(NamedTuple):
    """The outcome of a cancellation."""

    answers: dict[str, str]
    """The scheduler's answers by the attempt's key."""
    problem: str | None = None
    """Reason why not all of them have ended; None: all have."""


def waits_for(session: Session, names: Iterable[str], request: Path | None = None) -> str:
    """What the end of cancelled jobs waits for; empty once all have ended."""
    found = [session.jobs[name] for name in names if name in session.jobs]
    alive = [job for job in found if not job.is_over or job.open_attempts]
    if request is not None and request.exists():
        return "the monitor to take the request up"
    untold = [job for job in alive if not all(_is_told(session, job, a) for a in job.open_attempts)]
    if untold:
        return f"the scheduler to be told to end {_listed(untold)}"
    told = ": the scheduler was told" if any(job.open_attempts for job in alive) else ""
    return f"{_listed(alive)} to end{told}" if alive else ""


def _is_told(session: Session, job: JobRecord, attempt: Attempt) -> bool:
    return session.journal.has(
        CancelAnswered(job=job.spec.name, attempt=attempt.number, answer="").key
    )


def _listed(jobs: Sequence[JobRecord]) -> str:
    listed = ", ".join(f"{job.spec.name} ({job.state})" for job in jobs[:_NAMED])
    return listed if len(jobs) <= _NAMED else f"{listed} and {len(jobs) - _NAMED} more"


def cancel_directly(
    path: Path,
    jobs: tuple[str, ...],
    by: str,
    patience_s: float = _PATIENCE_S,
    notify: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Hold the session while cancelling `jobs` (all when empty).

    Attempts queued ahead of jobs that are over go too. `notify` is told what is waited for. Raises
    SessionHeld when a monitor is alive: it has to be asked instead.
    """
    with Session.hold(path) as (session, _):
        scheduler, monitor = scheduler_for(session.experiment), Monitor(session)
        monitor.recorder.apply(
            requests.process_requests
        )  # or the next monitor would submit what waits there
        monitor.recorder.apply(requests.request_cancel, jobs, by)
        wanted = [session.jobs[name] for name in jobs or session.jobs]
        answers: dict[str, str] = {}
        tries, deadline = 0, time.monotonic() + patience_s
        while True:
            problem = _end(monitor, wanted, scheduler, answers)
            try:
                monitor.look(scheduler.query(monitor.refs()))
            except SchedulerError as error:
                problem = str(error)
            alive = [job for job in wanted if not job.is_over or job.open_attempts]
            if not alive:
                if not jobs:  # what the ends of the jobs called for
                    monitor.recorder.apply(requests.drop_pending_actions, by)
                return Outcome(answers)
            if time.monotonic() > deadline:
                return Outcome(answers, problem or _not_ended(alive, answers))
            notify(problem or waits_for(session, [job.spec.name for job in wanted]))
            tries += 1
            time.sleep(delay_s(tries, _SHORTEST_PAUSE_S, _LONGEST_PAUSE_S))


def _not_ended(alive: Iterable[JobRecord], answers: dict[str, str]) -> str:
    """Reason why jobs have not ended; a reused job id can be settled only by a monitor."""
    foreign = [
        f"{attempt.key} was job {attempt.job_id}, and that id is another job's by now: nothing was "
        "cancelled; how it ended, or that it is lost, `autoexp resume` finds out in some minutes"
        for job in alive
        for attempt in job.open_attempts
        if answers.get(attempt.key, "").endswith(NOT_OURS)
    ]
    return "; ".join(foreign) or f"{', '.join(j.spec.name for j in alive)} have not ended yet"


def _end(
    monitor: Monitor,
    wanted: Iterable[JobRecord],
    scheduler: Scheduler,
    answers: dict[str, str],
) -> str | None:
    """Withdraw and cancel the jobs' attempts in the queue, nothing else; returns failures."""
    found = [next_step(job, monitor.worklist.asked_to_end) for job in wanted]
    ends: list[NextStep] = [step for step in found if isinstance(step, Withdraw | CancelAttempts)]
    problems = []

    def noted(phase: Phase) -> Any:
        try:
            result = do(phase, scheduler)
        except SchedulerError as error:
            problems.append(str(error))
            raise
        if isinstance(phase, Cancellation):
            answers.update(result)
        return result

    for step in together(ends, monitor.recorder.session.jobs, longest=1):
        for _ in in_turns(carry_out(step, monitor, _LOG), noted):
            pass
    return problems[-1] if problems else None
