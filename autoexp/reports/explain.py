"""Explains a job's state in sentences: which event, rule and action, and what it waits for."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from autoexp.index.events import EventIndex
from autoexp.index.overview import Overview, job_names
from autoexp.jobs.record import JobRecord
from autoexp.jobs.summary import waits
from autoexp.monitor.template_values import values_of
from autoexp.rules.actions import Keep, Start
from autoexp.rules.describe import describe, describe_action, evidence
from autoexp.rules.events import EvidenceCollected
from autoexp.session import find
from autoexp.session.action_records import ActionRecord, ActionStatus
from autoexp.session.journal import Entry
from autoexp.session.session import Session
from autoexp.states import Verdict
from autoexp.templates import fill

_DONE = {
    ActionStatus.DONE: "did",
    ActionStatus.RUNNING: "is about to",
    ActionStatus.PENDING: "wants to",
    ActionStatus.FAILED: "did not",
}


class Explained(NamedTuple):
    """A job, and what there is to say of its state."""

    session: str
    job: JobRecord
    sentences: list[str]


def explain_job(path: Path, name: str | None) -> Explained:
    """Explain a job of a session, or its first one; no more is read than that takes.

    Raises BadInput for an unknown job, and SessionDamaged.
    """
    find.must_exist(path)
    known = job_names(path)
    name = name or Overview(path).read().first_job
    if name not in known:
        raise find.no_such_job(path.name, [name], known)
    rows = Overview(path).actions()
    actions = {key: row for key, row in rows.items() if name in (row.job, row.starts)}
    jobs = {name, *(row.job for row in actions.values())}
    session = Session.part(path, jobs.intersection(known), actions)
    job = session.job(name)
    entries = EventIndex(path).read().of_job(name)
    return Explained(session.id, job, list(explain(session, job, entries)))


def explain(session: Session, job: JobRecord, entries: Iterable[Entry]) -> Iterator[str]:
    """Explain a job: its state first, then its history; `entries` are its events."""
    name = job.spec.name
    yield _state(job)
    if job.warning is not None:
        yield f"Warning: {job.warning}."
    yield from _requests(job)
    found: EvidenceCollected | None = None
    for entry in entries:
        if isinstance(entry.event, EvidenceCollected):
            found = entry.event
        when = entry.time.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        yield f"{when}  {describe(entry.event)}"
        for action in session.actions.values():
            if action.event.key == entry.event.key and not isinstance(action.action, Start | Keep):
                yield f"    {_action(session, action)}"
    for action in session.actions.values():
        if isinstance(action.action, Start) and action.action.job == name:
            yield f"Because {describe(action.event)}: {_action(session, action)}"
    for attempt in job.attempts:
        for rule, count in attempt.matches.items():
            if count > 1:
                yield f"Rule {rule} found {count} lines in the log of attempt {attempt.number}."
    if found is not None:
        yield f"Before attempt {found.attempt} was ended, {evidence(found)}."


def _state(job: JobRecord) -> str:
    name = job.spec.name
    target = job.spec.target_iteration
    reached = f"at iteration {job.iteration or 0}" + (f" of {target}" if target else "")
    if job.verdict is Verdict.FINISHED:
        return f"{name} has finished: {job.reason}."
    if job.verdict is Verdict.FAILED:
        return f"{name} has failed: {job.reason}."
    waiting = waits(job)
    if waiting is not None:
        return f"{name} is {job.state}: {waiting}."
    attempt = f", attempt {job.attempt.number}" if job.attempt else ""
    return f"{name} is {job.state}{attempt}, {reached}."


def _requests(job: JobRecord) -> Iterator[str]:
    if job.tainted is not None:
        yield f"Tainted: it {job.tainted}."
    if job.is_over:
        return
    if job.cancel_requested is not None:
        yield f"It is being cancelled, by {job.cancel_requested}."
    if job.ending is not None:
        yield f"It will end as {job.ending.verdict}: {job.ending.reason}."
    if job.restart is not None:
        alive = ", ".join(str(attempt.number) for attempt in job.open_attempts)
        waits_for = f"attempt {alive} to end" if alive else "its verdict"
        yield f"It restarts ({job.restart.reason}), and waits for {waits_for}."


def in_words(session: Session, action: ActionRecord) -> str:
    """Describe an action, with its templates filled."""
    values = values_of(action.event, action.rule, session)
    return fill(describe_action(action.action), values)


def _action(session: Session, action: ActionRecord) -> str:
    outcome = action.reason or action.result
    because = f" ({outcome.strip().splitlines()[-1][:300]})" if outcome and outcome.strip() else ""
    return f"rule {action.rule} {_DONE[action.status]} {in_words(session, action)}{because}"
