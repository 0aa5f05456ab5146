"""Emits a session's events as Prefect events, for automations: `autoexp.job.failed` and others.

A server that is away gets them later, in order; a kill of the flow's process in that time loses
them, as they are messages and not records. The session's journal loses none.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple
from uuid import NAMESPACE_URL, UUID, uuid5

from prefect.events import emit_event

from autoexp import sinks
from autoexp.flows.publishing.assets import AssetTracker
from autoexp.jobs.record import JobRecord
from autoexp.model import now
from autoexp.rules import events
from autoexp.rules.describe import describe
from autoexp.rules.events import Event
from autoexp.session.session import Session
from autoexp.states import Kind, Verdict


class PendingEvent(NamedTuple):
    """One event, ready to be emitted."""

    name: str
    key: str
    job: str
    occurred: datetime
    payload: dict[str, str]


class EventEmitter:
    """Collects events for Prefect, and emits them on request."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._pending: list[PendingEvent] = []
        self._position = session.journal.position
        self._submitted = {key for key, _, _ in _submissions(session)}
        self._cooldowns_done = _cooldowns_are_done(session)
        self._assets = AssetTracker(session)

    def collect(self) -> None:
        """Collect the events since the last call; runs on the session's thread."""
        self._note_journal()
        self._note_submissions()
        self._note_last_cooldown()

    async def emit_new(self) -> None:
        """Emit all that was collected."""
        pending, self._pending = self._pending, []
        for event in pending:
            _emit(self._session, event)
        await self._assets.emit_new()

    def _note_journal(self) -> None:
        fresh, self._position = self._session.journal.since(self._position)
        for time, event in fresh:
            payload = {"message": describe(event), **_payload(event)}
            name = _name(event, self._session)
            self._pending.append(PendingEvent(name, event.key, event.job, time, payload))
            if isinstance(event, events.CheckpointComplete):
                self._assets.note_checkpoint(event.job, event.iteration, event.path)
            elif isinstance(event, (events.AttemptJudged, events.JobGivenUp)):
                self._assets.note_end(self._session.jobs[event.job])

    def _note_submissions(self) -> None:
        for key, job, submitted_at in _submissions(self._session):
            if key not in self._submitted:
                self._submitted.add(key)
                self._pending += _submission_event(key, job, submitted_at)
                self._assets.note_submission(job, submitted_at or now())

    def _note_last_cooldown(self) -> None:
        if not self._cooldowns_done and _cooldowns_are_done(self._session):
            self._cooldowns_done = True
            failed = [job.spec.name for job in _cooldowns(self._session) if _has_failed(job)]
            outcome = f"failed: {', '.join(failed)}" if failed else "all finished"
            payload = {"message": f"the cooldowns of {self._session.id} are over: {outcome}"}
            self._pending.append(
                PendingEvent("autoexp.cooldowns.finished", "cooldowns-finished", "", now(), payload)
            )


def _submission_event(
    key: str, job: JobRecord, submitted_at: datetime | None
) -> Iterator[PendingEvent]:
    attempt = next(a for a in job.attempts if a.key == key)
    when = submitted_at or now()
    payload = {"message": f"{job.spec.title}: submitted as job {attempt.job_id}"}
    details = {**payload, "job_id": str(attempt.job_id), "attempt": str(attempt.number)}
    yield PendingEvent("autoexp.job.submitted", f"submitted/{key}", job.spec.name, when, details)
    if job.spec.kind is Kind.COOLDOWN and attempt.number == 1:
        yield PendingEvent(
            "autoexp.cooldown.launched", f"launched/{key}", job.spec.name, when, details
        )


def _submissions(session: Session) -> list[tuple[str, JobRecord, datetime | None]]:
    return [
        (attempt.key, job, attempt.submitted_at)
        for job in session.jobs.values()
        for attempt in job.attempts
        if attempt.job_id is not None
    ]


def _cooldowns(session: Session) -> list[JobRecord]:
    return [job for job in session.jobs.values() if job.spec.kind is Kind.COOLDOWN]


def _cooldowns_are_done(session: Session) -> bool:
    found = _cooldowns(session)
    return bool(found) and all(job.is_over for job in found)


def _has_failed(job: JobRecord) -> bool:
    return job.verdict is Verdict.FAILED


def _name(event: Event, session: Session) -> str:
    """The event's name in Prefect: `autoexp.`, what it is about, what happened."""
    match event:
        case events.CheckpointComplete():
            return "autoexp.checkpoint.saved"
        case events.StateChanged():
            return "autoexp.job.state"
        case events.AttemptJudged(verdict=verdict):
            return f"autoexp.job.{verdict}"
        case events.JobGivenUp():
            return "autoexp.job.failed"
        case events.AttemptRefused(job=job) if _has_failed(session.jobs[job]):
            return "autoexp.job.failed"  # it was not one of several, queued ahead
        case _:
            return f"autoexp.{event.kind.replace('_', '.', 1)}"


def _payload(event: Event) -> dict[str, str]:
    values = event.model_dump(mode="json", exclude={"kind"}, exclude_none=True)
    return {name: str(value) for name, value in values.items()}


def _emit(session: Session, pending: PendingEvent) -> None:
    about_session = {
        "prefect.resource.id": f"autoexp.session.{session.id}",
        "prefect.resource.name": session.id,
    }
    about_job = {
        "prefect.resource.id": f"autoexp.job.{session.id}.{pending.job}",
        "prefect.resource.name": pending.job,
        "autoexp.session": session.id,
        "autoexp.project": session.experiment.project.name,
    }
    emit_event(
        pending.name,
        resource=about_job if pending.job else about_session,
        related=[{**about_session, "prefect.resource.role": "session"}] if pending.job else [],
        payload={name: sinks.terminal(text) for name, text in pending.payload.items()},
        occurred=pending.occurred,
        id=_identity(session, pending),
    )


def _identity(session: Session, pending: PendingEvent) -> UUID:
    """The same event has the same id whoever emits it: a second copy changes nothing."""
    return uuid5(NAMESPACE_URL, f"autoexp:{session.path}:{pending.name}:{pending.key}")
