"""One pass: whatever is new in a session, to each of its trackers."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from autoexp import redaction
from autoexp.dotted import flat
from autoexp.jobs.record import JobRecord
from autoexp.model import FrozenModel
from autoexp.states import Verdict
from autoexp.storage import atomic, locks, migrations
from autoexp.tracking.cursor import FOLDER, Cursor, Cursors, Pending, Stamp, Stamps
from autoexp.tracking.curve import Rewind, read_piece
from autoexp.tracking.settings import Tracking
from autoexp.tracking.tracker import Batch, Owner, TrackedJob, Tracker, TrackerAway

OFFLINE = "wandb-offline"
"""In the folder of cursors: what `wandb sync` takes."""


class Sent(FrozenModel):
    """What a pass did for one tracker: an entry of `autoexp track --json`."""

    tracker: str
    points: int
    jobs: int
    problem: str | None
    """Why the pass ended early; None: nothing is left."""


def trackers_of(settings: Tracking, session: Path) -> Iterator[tuple[str, Callable[[], Tracker]]]:
    """The name of each tracker, and how it is made: its package is loaded only then.

    A directory that is not absolute is below the sessions root.
    """
    if (wandb := settings.wandb) is not None:

        def make_wandb() -> Tracker:
            from autoexp.tracking.wandb_runs import WandbRuns

            return WandbRuns(wandb, session / FOLDER / OFFLINE)

        yield "wandb", make_wandb
    if (mlflow := settings.mlflow) is not None:

        def make_mlflow() -> Tracker:
            from autoexp.tracking.mlflow_runs import MlflowRuns

            return MlflowRuns(mlflow)

        yield "mlflow", make_mlflow
    if (directory := settings.tensorboard) is not None:

        def make_event_files() -> Tracker:
            from autoexp.tracking.event_files import EventFiles

            return EventFiles(session.parent / directory)

        yield "tensorboard", make_event_files


def send_new(
    session: Path, owner: Owner, settings: Tracking, *, patience_s: float = 0.0, rests: bool = False
) -> list[Sent]:
    """Send what is new to each tracker; `rests`: leave out what need not be sent yet.

    A tracker that is away is a problem in the answer, and the next pass goes on where this one
    ended. Raises locks.Busy while another pass is under way, and SessionDamaged.
    """
    atomic.make_directory(session / FOLDER)
    with locks.exclusively(session / FOLDER / "lock", patience_s):
        return [
            _send_to(session, owner, name, make, rests=rests)
            for name, make in trackers_of(settings, session)
        ]


def _send_to(
    session: Path, owner: Owner, name: str, make: Callable[[], Tracker], *, rests: bool
) -> Sent:
    cursors = Cursors(session, name)
    known = cursors.load_stamps()
    new = {job: stamp for job, stamp in stamps(session).items() if known.jobs.get(job) != stamp}
    if not new:
        return Sent(tracker=name, points=0, jobs=0, problem=None)
    points, done, problem = 0, dict[str, Stamp](), None
    tracker: Tracker | None = None
    try:
        tracker = make()
        for job, stamp in new.items():
            sent = _send_job(session, owner, job, cursors, tracker, rests=rests)
            if sent is not None:
                points += sent
                done[job] = stamp
    except TrackerAway as error:
        problem = str(error)
    except ImportError as error:
        problem = f"{error.name} is not installed: pip install 'autoexp[{name}]'"
    finally:
        if done:
            cursors.save_stamps(Stamps(jobs={**known.jobs, **done}))
        if tracker is not None:
            tracker.close()
    return Sent(tracker=name, points=points, jobs=len(done), problem=problem)


def stamps(session: Path) -> dict[str, Stamp]:
    """The stamp of each job: nothing of it is read as long as that is the same."""
    found = {}
    for entry in os.scandir(session / "jobs"):
        if entry.name.endswith(".json"):
            job = entry.name.removesuffix(".json")
            size = 0
            with suppress(FileNotFoundError):
                size = (session / "metrics" / f"{job}.csv").stat().st_size
            found[job] = (size, entry.stat().st_mtime_ns)
    return dict(sorted(found.items()))


def _send_job(
    session: Path, owner: Owner, name: str, cursors: Cursors, tracker: Tracker, *, rests: bool
) -> int | None:
    """Send what is new of a job; returns the number of points, None where it has to wait."""
    record = migrations.read(session / "jobs" / f"{name}.json", JobRecord)
    job, cursor = tracked(record, owner), cursors.load(name)
    path = session / "metrics" / f"{name}.csv"
    waits = time.time() * 1000 < cursor.sent_at_ms + tracker.rest_s * 1000
    if rests and waits and job.state is None and cursor.pending is None:
        return None
    told, points = _told(job), 0
    while True:
        pending = cursor.pending
        piece = read_piece(path, cursor.offset, cursor.last, pending.end if pending else None)
        is_begun = bool(cursor.sent_at_ms) or bool(piece.steps) or bool(job.scores)
        if not is_begun or (piece.end == cursor.offset and told == cursor.told):
            return points
        if pending is None:
            pending = Pending(end=piece.end, at_ms=int(time.time() * 1000))
            cursor = cursor.model_copy(update={"pending": pending})
            cursors.save(name, cursor)
        fresh = [(step.come, step.to) for step in piece.steps if isinstance(step, Rewind)]
        rewinds = [*cursor.rewinds, *fresh]
        batch = Batch(
            piece.steps,
            pending.at_ms,
            len(cursor.rewinds),
            rewinds,
            piece.last or 0,
            cursor.kept,
        )
        kept = tracker.send(job if told != cursor.told else job._replace(scores={}), batch)
        cursor = Cursor(
            offset=piece.end,
            last=piece.last,
            rewinds=rewinds,
            kept=kept,
            told=told,
            sent_at_ms=pending.at_ms,
        )
        cursors.save(name, cursor)
        points += len(batch.marked())


def tracked(record: JobRecord, owner: Owner) -> TrackedJob:
    """A job as trackers show it: without what looks like a secret."""
    spec = record.spec
    about = {
        "target_iteration": spec.target_iteration,
        "starts_at": spec.starts_at,
        **flat(spec.settings),
        **flat(spec.changes),
    }
    settings = {
        name: redaction.without_secrets(str(value))
        for name, value in about.items()
        if value is not None and not redaction.looks_secret(name)
    }
    return TrackedJob(
        owner, spec.name, spec.kind.value, spec.parent, settings, _state(record), record.scores
    )


def _state(record: JobRecord) -> str | None:
    if record.was_cancelled:
        return "cancelled"
    return None if record.verdict is None else Verdict(record.verdict).value


def _told(job: TrackedJob) -> str:
    """How a job stands: once it stands otherwise, that is sent, without new points too."""
    return json.dumps([job.state, dict(job.scores)], sort_keys=True)
