"""Checkpoints and models of a session as Prefect assets: what was made, by which job, of what.

A checkpoint is one once a job uses it, a job's outcome once the job is over; the rest of a month's
checkpoints are of no interest to others.
"""

import asyncio
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import NAMESPACE_URL, uuid5

from prefect.events import emit_event

from autoexp import sinks
from autoexp.jobs.record import JobRecord
from autoexp.jobs.spec import JobSpec
from autoexp.model import now
from autoexp.reports.curves import read_curve, validation_loss
from autoexp.session.session import Session
from autoexp.states import Kind, Verdict
from autoexp.storage import removal

_LONGEST_KEY = 512  # of an asset's key. Source: prefect/types/names.py, MAX_ASSET_KEY_LENGTH
_NOT_IN_KEYS = re.compile(r"[^A-Za-z0-9._/+=@:-]")
_OUTPUTS = {
    Kind.EVALUATE: "scores",
    Kind.COMMAND: "output",
    Kind.UPLOAD: "upload",
}  # of other kinds a model


def checkpoint_key(session: str, job: str, iteration: int) -> str:
    """The key of a checkpoint's asset: `autoexp://SESSION/JOB/checkpoints/1000`."""
    return f"autoexp://{session}/{job}/checkpoints/{iteration}"


def output_key(session: str, spec: JobSpec) -> str:
    """The key of what a job makes: `autoexp://SESSION/JOB/model`, or `/scores`, or `/output`."""
    return f"autoexp://{session}/{spec.name}/{_OUTPUTS.get(spec.kind, 'model')}"


def data_key(name: str) -> str:
    """The key of a data set: `file:///its/path`, or `data://NAME` for another name."""
    scheme = "file://" if name.startswith("/") else "data://"
    return f"{scheme}{_NOT_IN_KEYS.sub('_', name)}"[:_LONGEST_KEY]


class Materialization(NamedTuple):
    """An asset that a job has made, or has failed to make."""

    key: str
    name: str
    job: str
    succeeded: bool
    upstream: tuple[str, ...]
    """Keys of the assets that it was made of."""
    path: str
    iteration: int | None
    details: dict[str, Any]
    occurred: datetime


class AssetTracker:
    """Collects the assets of a session, and emits Prefect's events about them on request."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._pending: list[Materialization] = []
        # Where a checkpoint lies, by job and iteration; of a retry or a roll-back the last one.
        self._paths = {(saved.job, saved.iteration): saved.path for saved in session.checkpoints()}
        jobs = session.jobs.values()
        begun = [job for job in jobs if job.attempts and job.attempts[0].job_id is not None]
        self._used = {used for job in begun for used in _used_by(job.spec)}
        self._made = {(job.spec.name, job.retries) for job in jobs if job.is_over}

    def note_checkpoint(self, job: str, iteration: int, path: str) -> None:
        """Note that a checkpoint is complete."""
        self._paths[job, iteration] = path

    def note_submission(self, job: JobRecord, at: datetime) -> None:
        """Note that a job was submitted: the checkpoints that it begins with are in use."""
        for used in _used_by(job.spec):
            if used not in self._used and used[0] in self._session.jobs:
                self._used.add(used)
                self._pending.append(self._checkpoint(*used, at))

    def note_end(self, job: JobRecord) -> None:
        """Note that a job may be over; that it is, counts once."""
        key = job.spec.name, job.retries
        if job.is_over and not job.was_cancelled and key not in self._made:
            self._made.add(key)
            self._pending.append(self._output(job))

    async def emit_new(self) -> None:
        """Emit all that was collected; a thread reads sizes and curves, which may take long."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        for made in await asyncio.to_thread(lambda: list(map(self._measured, pending))):
            _emit(self._session, made)

    def _checkpoint(self, name: str, iteration: int, at: datetime) -> Materialization:
        spec = self._session.jobs[name].spec
        return Materialization(
            key=checkpoint_key(self._session.id, name, iteration),
            name=f"{name} @{iteration}",
            job=name,
            succeeded=True,
            upstream=tuple(dict.fromkeys(self._beginning(spec))),
            path=self._paths.get((name, iteration), ""),
            iteration=iteration,
            details={"tokens": spec.tokens_at(iteration)},
            occurred=at,
        )

    def _output(self, job: JobRecord) -> Materialization:
        spec = job.spec
        trains = spec.kind.trains
        saved = self._paths.get((spec.name, job.iteration or 0), "") if trains else ""
        ended = [attempt.ended_at for attempt in job.attempts if attempt.ended_at is not None]
        return Materialization(
            key=output_key(self._session.id, spec),
            name=spec.title,
            job=spec.name,
            succeeded=job.verdict is Verdict.FINISHED,
            upstream=tuple(dict.fromkeys(self._beginning(spec))),
            path=str(spec.merged_path) if spec.merge else saved or spec.output_dir,
            iteration=job.iteration if trains else None,
            details={
                "tokens": spec.tokens_at(job.iteration or 0) if trains else None,
                "validation_loss": validation_loss(job),
                "reason": job.reason,
                **job.scores,
            },
            occurred=max(ended, default=now()),
        )

    def _beginning(self, spec: JobSpec) -> Iterator[str]:
        """What a job begins with: checkpoints, what other jobs have made, data sets."""
        for job, iteration in _used_by(spec):
            yield checkpoint_key(self._session.id, job, iteration)
        for awaited in spec.awaits:
            if awaited.checkpoint is None and (other := self._session.jobs.get(awaited.job)):
                yield output_key(self._session.id, other.spec)
        if spec.kind.trains:
            yield from map(data_key, spec.trainer.data_sets())

    def _measured(self, made: Materialization) -> Materialization:
        size = 0
        with suppress(OSError):  # another user's folder, a file server that is away
            size = removal.size_of(Path(made.path)) if made.path else 0
        found: dict[str, Any] = {"bytes": size or None}
        if made.iteration is not None:
            curve = read_curve(self._session.path, made.job)
            losses = dict(zip(curve.iterations, curve.losses, strict=True))
            found["loss"] = losses.get(made.iteration)
        return made._replace(details={**found, **made.details})


def _used_by(spec: JobSpec) -> Sequence[tuple[str, int]]:
    """The checkpoints of other jobs that a job begins with: job and iteration of each."""
    used = [(each.job, each.checkpoint) for each in spec.awaits if each.checkpoint is not None]
    if spec.parent is not None and spec.merge is not None:
        used += [(spec.parent, iteration) for iteration in spec.merge.iterations]
    elif spec.parent is not None and spec.starts_at is not None:
        used.append((spec.parent, spec.starts_at))
    return used


def _emit(session: Session, made: Materialization) -> None:
    """Emit the events that Prefect's `@materialize` emits of a task that makes this.

    Source: prefect/context.py, AssetContext.emit_events. No task of ours makes it: a job does.
    """
    for key in made.upstream:
        emit_event("prefect.asset.referenced", resource={"prefect.resource.id": key})
    related = [
        *({"prefect.resource.id": key, "prefect.resource.role": "asset"} for key in made.upstream),
        {
            "prefect.resource.id": f"autoexp.job.{session.id}.{made.job}",
            "prefect.resource.role": "asset-materialized-by",
        },
        {
            "prefect.resource.id": f"autoexp.session.{session.id}",
            "prefect.resource.name": session.id,
            "prefect.resource.role": "session",
        },
    ]
    known = {
        "session": session.id,
        "project": session.experiment.project.name,
        "job": made.job,
        "path": made.path,
        "config": str(session.path / "config" / "resolved.yaml"),
        "iteration": made.iteration,
        "commit": session.meta.git.get("commit"),
        **made.details,
    }
    status = "succeeded" if made.succeeded else "failed"
    emit_event(
        f"prefect.asset.materialization.{status}",
        resource={
            "prefect.resource.id": made.key,
            "prefect.resource.name": sinks.terminal(made.name),
        },
        related=related,
        payload={
            name: sinks.terminal(str(value)) for name, value in known.items() if value is not None
        },
        occurred=made.occurred,
        id=uuid5(NAMESPACE_URL, f"{session.path}:{made.key}:{status}:{made.occurred.isoformat()}"),
    )
