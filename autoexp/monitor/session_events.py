"""Events of a session as a whole: trainings finished, a budget passed, and jobs that wait.

Waiting jobs: which are ready, which can never start, and the final command of one that starts.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autoexp.config.stages import LATE
from autoexp.errors import SessionError
from autoexp.jobs.backend_changes import changed_spec
from autoexp.jobs.limits import over_budget, spent
from autoexp.jobs.record import JobRecord
from autoexp.jobs.spec import Awaited, JobSpec
from autoexp.rules.events import (
    AttemptJudged,
    BudgetPassed,
    Event,
    JobGivenUp,
    JobReady,
    TrunksFinished,
)
from autoexp.rules.rules import SessionRule
from autoexp.session.session import Session
from autoexp.states import Kind, Verdict
from autoexp.templates import fill, fill_tree

_STOP = "budget.stop_above"
Jobs = Mapping[str, JobRecord]


def overview(
    session: Session, rules: Mapping[str, SessionRule], fresh: Sequence[Event]
) -> list[Event]:
    """Events of the whole session; only those that a rule asks for are computed."""
    found: list[Event] = []
    judged = any(isinstance(event, AttemptJudged | JobGivenUp) for event in fresh)
    if judged and any(rule.trunks_finished for rule in rules.values()):
        trunks = [job for job in session.jobs.values() if job.spec.kind is Kind.TRAIN]
        if trunks and all(job.verdict is Verdict.FINISHED for job in trunks):
            found.append(TrunksFinished(trunks=len(trunks)))
    for name, rule in rules.items():
        if rule.gpu_hours_above is not None and not session.journal.has(f"budget/{name}"):
            hours = spent(session.jobs.values())
            if hours > rule.gpu_hours_above:
                found.append(BudgetPassed(rule=name, gpu_hours=round(hours, 3)))
    jobs = session.jobs.values()
    passed = over_budget(session.experiment.budget, jobs) is not None
    if passed and not session.journal.has(f"budget/{_STOP}"):
        found.append(BudgetPassed(rule=_STOP, gpu_hours=round(spent(jobs), 3)))
    return found


def ready(session: Session) -> Iterator[JobReady]:
    """One event for each waiting job whose dependencies are satisfied."""
    for name, job in session.jobs.items():
        if job.spec.awaits and not job.launched and not job.is_over:
            event = JobReady(job=name, retries=job.retries)
            if session.journal.has(event.key):
                continue
            if all(_is_satisfied(awaited, session.jobs) for awaited in job.spec.awaits):
                yield event


def _is_satisfied(awaited: Awaited, jobs: Jobs) -> bool:
    job = jobs.get(awaited.job)
    if job is None:
        return False
    if awaited.checkpoint is not None:
        return awaited.checkpoint in job.checkpoints
    return job.verdict is Verdict.FINISHED


def unsatisfiable_reason(session: Session, job: JobRecord) -> str | None:
    """Reason why a job without an attempt can never be submitted; None while it still can."""
    if job.cancel_requested:
        return f"cancelled: {job.cancel_requested}"
    if job.ending is not None:
        return job.ending.reason
    if (stopped := _stopped(session)) is not None:
        return stopped
    if job.launched:
        return None
    if (gone := _deleted_start(job.spec, session.jobs)) is not None:
        return gone
    starts = [
        action
        for action in session.actions.starts_of(job.spec.name)
        if session.is_valid(action.event)
    ]
    if any(not action.is_settled for action in starts):
        return None
    if starts:
        return f"could not be started: {starts[-1].reason}"
    if job.spec.awaits:
        return _unsatisfiable_dependency(job.spec, session.jobs)
    parent = session.jobs.get(job.spec.parent or "")
    if parent is None or not parent.is_over or job.spec.starts_at is None:
        return None
    return (
        f"never started: {parent.spec.name} {parent.verdict} "
        f"without a complete checkpoint at iteration {job.spec.starts_at}"
    )


def _deleted_start(spec: JobSpec, jobs: Jobs) -> str | None:
    """Reason why a job cannot start whose checkpoint was deleted before the job was asked for."""
    wanted = [(a.job, a.checkpoint) for a in spec.awaits if a.checkpoint is not None]
    if spec.parent is not None and spec.starts_at is not None:
        wanted.append((spec.parent, spec.starts_at))
    for name, iteration in wanted:
        if name in jobs and iteration in jobs[name].deleted:
            return f"never started: checkpoint {iteration} of {name} was deleted by `retention`"
    return None


def _stopped(session: Session) -> str | None:
    """Reason why no more jobs start, once the running ones have ended."""
    if session.experiment.budget.stop_above is None:
        return None
    if any(job.open_attempts for job in session.jobs.values()):
        return None
    return over_budget(session.experiment.budget, session.jobs.values())


def _unsatisfiable_dependency(spec: JobSpec, jobs: Jobs) -> str | None:
    """Reason why a waiting job can never start; None while it still can."""
    for awaited in spec.awaits:
        job = jobs.get(awaited.job)
        if job is None:
            return f"cancelled: {awaited.job} is not a job of this session"
        if not job.is_over or _is_satisfied(awaited, jobs):
            continue
        if job.verdict is Verdict.FAILED and job.spec.awaits and not job.launched:
            return job.reason  # why that one never started is why this one never will
        if job.verdict is Verdict.FAILED:
            return f"cancelled: {awaited.job} failed ({job.reason})"
        return f"cancelled: {awaited.job} ended without checkpoint {awaited.checkpoint}"
    return None


def filled(session: Session, spec: JobSpec) -> JobSpec:
    """The job with its final command: every template filled, once.

    Raises SessionError when a sibling has no checkpoint that its command names, and BadInput when
    its trainer does not take what is put in.
    """
    if spec.merge is not None:
        found = [_input(spec, iteration) for iteration in spec.merge.iterations]
        command = spec.trainer.merge_command(found, spec.merge_weights, spec.merged_path)
        return spec.model_copy(update={"command": command})
    draft = spec.draft
    if draft is None:
        return spec
    values = dict(draft.values)
    for name, awaited in draft.late.items():
        values |= _late_values(session, name, awaited)
    if draft.backend:
        return spec.model_copy(update=changed_spec(spec, fill_tree(draft.backend, values)))
    changes: dict[str, Any] = {
        "command": tuple(fill(text, values) for text in draft.command),
        "environment": {key: fill(text, values) for key, text in draft.environment.items()},
    }
    return spec.model_copy(update=changes)


def _input(spec: JobSpec, iteration: int) -> Path:
    path = pinned_input(spec, iteration)
    if path is None:
        raise SessionError(
            f"checkpoint {iteration} of {spec.parent} was not pinned for {spec.name} before it was "
            "deleted, or was set aside"
        )
    return path


def pinned_input(spec: JobSpec, iteration: int) -> Path | None:
    """A merge's own copy of a checkpoint, if it is there."""
    complete = spec.trainer.checkpoints(spec.input_dir(iteration)).complete
    return next((found.path for found in complete if found.iteration == iteration), None)


def _late_values(session: Session, name: str, awaited: Awaited) -> dict[str, str]:
    """The sibling's newest complete checkpoint, or the one that was waited for."""
    found = [event for event in session.checkpoints() if event.job == awaited.job]
    if awaited.checkpoint is not None:
        found = [event for event in found if event.iteration == awaited.checkpoint]
    if not found:
        raise SessionError(f"{awaited.job} has no complete checkpoint")
    newest = max(found, key=lambda event: event.iteration)
    values = (newest.path, str(newest.iteration))
    return {f"sibling.{name}.{key}": text for key, text in zip(LATE, values, strict=True)}
