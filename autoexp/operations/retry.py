"""Retries jobs in their session: failed ones and what never started because of them, and scores."""

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

from autoexp.errors import BadInput
from autoexp.jobs.record import JobRecord, RestartRequest
from autoexp.jobs.starts import ended_wrongly
from autoexp.logs.tail import LogCursor
from autoexp.model import now
from autoexp.operations import adopt
from autoexp.rules.actions import Keep, Start
from autoexp.rules.events import RetryAsked
from autoexp.session.action_records import ActionStatus
from autoexp.session.session import Session
from autoexp.states import Verdict
from autoexp.storage.claims import Claim

# Shorter than a heartbeat: the monitor waits within a round of writes.
_PATIENCE_S = 5.0


def retry(session: Session, jobs: tuple[str, ...], by: str) -> list[str]:
    """Resume failed jobs from their last checkpoints; all that can be when none is named.

    A job that writes scores runs again, where it is named, after it has finished, too: one of them
    may be missing. Repeatable: a retried job is over no longer. Raises BadInput for another job
    that has finished, one that the scheduler still has, or whose folder another session uses.
    """
    for name in jobs:
        check_retryable(session, name)
    wanted = [session.jobs[name] for name in jobs] or list(session.jobs.values())
    over = (Verdict.FAILED, Verdict.FINISHED) if jobs else (Verdict.FAILED,)
    failed = [job for job in wanted if job.verdict in over]
    if not failed:
        return []
    # Nobody adopts a job into one of their folders before the records say that they go on.
    is_careful = adopt.is_used() or any(map(adopt.is_adopted, failed))
    with adopt.exclusively(_PATIENCE_S) if is_careful else nullcontext():
        taken = {job.spec.name: adopt.take_again(session, job) for job in failed}
        chosen = {job.spec.name: job for job in failed if taken[job.spec.name] is None}
        if jobs or not chosen:
            for job in failed:
                _refuse_taken(job, taken[job.spec.name])
        for job in _never_started_descendants(session, chosen):
            chosen[job.spec.name] = job
        for job in chosen.values():
            if not job.open_attempts:
                _reset_for_retry(session, job, by)
    return list(chosen)


def left_out(session: Session) -> dict[str, str]:
    """Failed jobs that cannot be retried, with the reason."""
    found = {}
    for name, job in session.jobs.items():
        if job.verdict is Verdict.FAILED:
            try:
                _refuse_taken(job, adopt.other_user(session, job))
            except BadInput as error:
                found[name] = str(error)
    return found


def check_retryable(session: Session, name: str) -> None:
    """Raise BadInput for a job that cannot be retried."""
    job = session.job(name)
    if job.verdict is Verdict.FINISHED and job.spec.scores is None:
        raise BadInput(
            f"{name}: has finished; only failed jobs can be retried, and those that write scores"
        )
    if job.open_attempts and job.is_over:
        raise BadInput(f"{name}: still in the queue; try again when its attempts have ended")
    _refuse_taken(job, adopt.other_user(session, job))


def _refuse_taken(job: JobRecord, holder: Claim | None) -> None:
    if holder is not None:
        raise BadInput(
            f"{job.spec.name}: {job.spec.save_dir} is {holder.title}'s by now, which would write "
            "there at the same time; remove that one first"
        )


def _never_started_descendants(session: Session, chosen: Iterable[str]) -> list[JobRecord]:
    """Jobs that never started because one of these failed, or a descendant of these."""
    reached, found = set(chosen), []
    # Jobs that wait for a job come after it in the session's order.
    for job in session.jobs.values():
        above = {job.spec.parent, *(awaited.job for awaited in job.spec.awaits)}
        if job.verdict is Verdict.FAILED and not job.launched and above & reached:
            reached.add(job.spec.name)
            found.append(job)
    return found


def _reset_for_retry(session: Session, job: JobRecord, by: str) -> None:
    # Repeated after a kill in between, the event has the same key and is recorded once.
    session.record([RetryAsked(job=job.spec.name, by=by, retries=job.retries + 1)])
    for action in session.actions.values():
        mine = isinstance(action.action, Start | Keep) and action.action.job == job.spec.name
        if mine and not job.launched and action.status is ActionStatus.FAILED:
            changes: dict[str, Any] = {"reason": None, "result": None, "asked_at": now()}
            session.change_action(action, status=ActionStatus.PENDING, **changes)
    back = _begun_wrongly(job)
    # A failed attempt becomes one that is to be continued, as the user requested.
    attempts = [
        attempt if attempt.is_open else attempt.model_copy(update={"verdict": Verdict.CONTINUE})
        for attempt in job.attempts
    ]
    session.change_job(
        job,
        attempts=attempts,
        verdict=None,
        reason=None,
        warning=None,
        cancel_requested=None,
        ending=None,
        restart=None if back is None else _rolled_back(job, back, by),
        checkpoints=[at for at in job.checkpoints if back is None or at <= back],
        roll_backs=[*job.roll_backs, *([] if back is None else [back])],
        deleted=[at for at in job.deleted if back is None or at <= back],
        attempts_without_progress=0,
        cursor=LogCursor(),
        tail=[],
        scores={},
        retries=job.retries + 1,
    )


def _begun_wrongly(job: JobRecord) -> int | None:
    """The iteration that the job had to begin from, if it did not: its saves are set aside."""
    return job.attempt.first_iteration if job.attempt and ended_wrongly(job) else None


def _rolled_back(job: JobRecord, back: int, by: str) -> RestartRequest:
    return RestartRequest(
        attempt=job.attempts[-1].number, action="retry", reason=by, roll_back_to=back
    )
