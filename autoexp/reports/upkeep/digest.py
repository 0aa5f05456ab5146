"""What became of sessions in the last days, as Markdown for a chat."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from autoexp.jobs.limits import held
from autoexp.jobs.record import JobRecord
from autoexp.jobs.summary import summary_of
from autoexp.reports.status import status_of
from autoexp.reports.upkeep.goodput import goodput
from autoexp.rules.durations import in_bytes, spoken
from autoexp.rules.events import (
    AttemptJudged,
    CheckpointComplete,
    CheckpointDeleted,
    JobGivenUp,
    RestartAsked,
)
from autoexp.session.journal import Entry
from autoexp.session.session import Session
from autoexp.sinks import markdown, markdown_code
from autoexp.states import Verdict

_SHOWN = 10


class _Counts(NamedTuple):
    saved: int
    deleted: int
    freed: int
    restarts: int
    attempts: Counter[str]
    """Ended attempts by the state that they ended in."""


def digest(sessions: Sequence[Session], since_s: float, at: datetime) -> str:
    """A section for each session that something has happened in, or that is not over."""
    since = at - timedelta(seconds=since_s)
    parts = [
        "\n".join(_section(session, entries, since, at))
        for session in sessions
        if (entries := _entries(session, since)) or not session.is_over
    ]
    begin = f"**autoexp, the last {spoken(since_s)}**"
    return "\n\n".join([begin, *(parts or ["Nothing has happened."])])


def _entries(session: Session, since: datetime) -> list[Entry]:
    return [entry for entry in session.journal.entries if entry.time >= since]


def _section(
    session: Session, entries: Sequence[Entry], since: datetime, at: datetime
) -> Iterator[str]:
    status = status_of(session)
    yield f"**{markdown(session.id)}**: {status.state}"
    if status.state == "stopped":
        yield f"- nobody watches it: {markdown_code(f'autoexp resume {session.id}')}"
    used = sum(_gpu_hours(job, since, at) for job in session.jobs.values())
    if used:
        rows = goodput([session])
        hours = sum(row.hours for row in rows)
        share = sum(row.new for row in rows) / hours if hours else 0.0
        yield f"- {used:.1f} GPU hours; goodput {share:.0%} since its start"
    counts = _counted(entries)
    if any((counts.saved, counts.deleted, counts.restarts, counts.attempts)):
        yield f"- {', '.join(_happened(counts))}"
    yield from _jobs(session, entries)


def _gpu_hours(job: JobRecord, since: datetime, at: datetime) -> float:
    """GPU hours that a job held since then."""
    return sum(
        held(a.gpus, max(a.started_at, since), a.ended_at or at)
        for a in job.attempts
        if a.started_at is not None
    )


def _counted(entries: Sequence[Entry]) -> _Counts:
    events = [entry.event for entry in entries]
    deleted = [event for event in events if isinstance(event, CheckpointDeleted)]
    return _Counts(
        saved=sum(isinstance(event, CheckpointComplete) for event in events),
        deleted=len(deleted),
        freed=sum(event.bytes for event in deleted),
        restarts=sum(isinstance(event, RestartAsked) for event in events),
        attempts=Counter(event.state for event in events if isinstance(event, AttemptJudged)),
    )


def _happened(counts: _Counts) -> Iterator[str]:
    if counts.saved:
        yield f"{counts.saved} checkpoints"
    if counts.deleted:
        yield f"{counts.deleted} deleted ({in_bytes(counts.freed)})"
    if counts.attempts:
        ends = ", ".join(f"{n} {markdown(state)}" for state, n in counts.attempts.most_common())
        yield f"attempts ended: {ends}"
    if counts.restarts:
        yield f"{counts.restarts} restarts by rules"


def _jobs(session: Session, entries: Sequence[Entry]) -> Iterator[str]:
    """What has finished and failed since then, and what runs; of very many the first."""
    ended = {e.event.job for e in entries if isinstance(e.event, AttemptJudged | JobGivenUp)}
    jobs = session.jobs
    finished = [n for n, job in jobs.items() if n in ended and job.verdict is Verdict.FINISHED]
    failed = [n for n, job in jobs.items() if n in ended and job.failed_by_itself]
    running = [n for n, job in jobs.items() if not job.is_over and job.open_attempts]
    for word, names in (("failed", failed), ("runs", running), ("finished", finished)):
        for name in names[:_SHOWN]:
            yield f"- {word}: {markdown(name)}{_how(jobs[name])}"
        if len(names) > _SHOWN:
            yield f"- {word}: {len(names) - _SHOWN} more"


def _how(job: JobRecord) -> str:
    found = summary_of(job)
    if job.failed_by_itself:
        return f": {markdown(str(job.reason))}"
    parts = []
    if found.iteration is not None:
        of = "" if found.target_iteration is None else f"/{found.target_iteration}"
        parts.append(f"{found.iteration}{of}")
    if found.loss is not None:
        parts.append(f"loss {found.loss:.4g}")
    if found.seconds_left:
        parts.append(f"{found.seconds_left / 3600:.1f} h left")
    if found.warning:
        parts.append(markdown(found.warning))
    return f" {', '.join(parts)}" if parts else ""
