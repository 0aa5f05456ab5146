"""The ends of decays as runs of a law: which go in, and why others do not."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from autoexp.jobs.record import JobRecord
from autoexp.jobs.starts import branch_was_seen
from autoexp.reports.results import Row, in_words, rows
from autoexp.science.law import Run
from autoexp.session.session import Session
from autoexp.states import Kind, Verdict


class LeftOut(NamedTuple):
    """A job that does not go into the law."""

    name: str
    reason: str


class Ends(NamedTuple):
    """The runs of a law, and the jobs that are left out."""

    runs: tuple[Run, ...]
    left_out: tuple[LeftOut, ...]
    measured: str
    """Which loss they are compared by: `validation_loss`, or `final_loss`."""


def ends_of(sessions: Sequence[Session]) -> Ends:
    """The cooldowns and baselines that finished, by validation loss where one of them has it."""
    found = list(_decayed(sessions))
    has_validation = any(row["validation_loss"] is not None for _, _, row in found)
    measured = "validation_loss" if has_validation else "final_loss"
    runs: list[Run] = []
    left_out: list[LeftOut] = []
    for name, reason, row in found:
        reason = reason or _unmeasured(row, measured)
        if reason is None:
            runs.append(Run(name, row["parameters"], row["tokens"], row[measured]))
        else:
            left_out.append(LeftOut(name, reason))
    return Ends(tuple(runs), tuple(left_out), measured)


def _decayed(sessions: Sequence[Session]) -> Iterator[tuple[str, str | None, Row]]:
    for session in sessions:
        for row in rows([session]):
            job = session.jobs[row["job"]]
            if job.spec.kind in (Kind.COOLDOWN, Kind.BASELINE):
                name = row["job"] if len(sessions) == 1 else f"{session.id}:{row['job']}"
                yield name, _unfit(session, job), row


def _unfit(session: Session, job: JobRecord) -> str | None:
    """Reason why a branch's end says nothing about size and data alone."""
    if job.verdict is not Verdict.FINISHED:
        return f"failed: {job.reason}" if job.verdict else "has not finished"
    if job.tainted is not None:
        return f"tainted: {job.tainted}"
    if job.spec.branch is not None and not branch_was_seen(job):
        return "its log does not say where it began"
    above: JobRecord | None = job
    while above is not None:
        if above.spec.changes_data:
            return f"trained on other data ({in_words(above.spec.changes)})"
        above = session.jobs.get(above.spec.parent or "")
    return None


def _unmeasured(row: Row, measured: str) -> str | None:
    if row["parameters"] is None:
        return "its number of parameters is unknown: give backend.parameters"
    if not row["tokens"]:
        return "its number of tokens is unknown: see tokens_per_sample of the backend"
    if row[measured] is None:
        return f"has no {measured.replace('_', ' ')}"
    return None if row[measured] > 0 else "its loss is not above 0"
