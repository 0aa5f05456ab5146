"""Deletes a checkpoint: looked at once more, renamed in one step, then removed part by part.

The action is `running` on disk before; the job's record says that the checkpoint is gone before
its folder has another name, so that nobody begins from it. A kill anywhere leaves a checkpoint that
is whole and known, or one whose removal goes on.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from autoexp.errors import SessionError
from autoexp.jobs.record import JobRecord
from autoexp.monitor.recorder import Recorder
from autoexp.monitor.retention import KEPT
from autoexp.operations import actions
from autoexp.rules.durations import in_bytes
from autoexp.rules.events import CheckpointComplete, CheckpointDeleted
from autoexp.schedulers.base import Scheduler
from autoexp.session.checkpoint_uses import checkpoints_of
from autoexp.session.session import Session
from autoexp.storage import atomic, removal

_PART = 500
"""Entries of a folder that are removed in one go."""


class Removal(NamedTuple):
    """Remove a part of a deleted checkpoint."""

    path: Path
    still_ours: Callable[[], None]
    """Raises once the session is another monitor's."""

    @property
    def title(self) -> str:
        return f"remove {self.path.name}"

    def run(self, scheduler: Scheduler) -> removal.Part:
        del scheduler
        self.still_ours()
        return removal.remove_part(self.path, _PART)


class Measuring(NamedTuple):
    """Measure a checkpoint."""

    path: Path

    @property
    def title(self) -> str:
        return f"measure {self.path.name}"

    def run(self, scheduler: Scheduler) -> int:
        del scheduler
        return removal.size_of(self.path)


def begin(recorder: Recorder, key: str) -> Removal | None:
    """Put a checkpoint out of use, if nothing has come to need it; else record why it stays.

    Raises SessionError for one that was set aside meanwhile, or is not where it was saved.
    """
    recorder.write_down()
    session = recorder.session
    action = session.actions[key]
    event = action.event
    assert isinstance(event, CheckpointComplete)
    job = session.jobs[event.job]
    if not session.is_valid(event):
        raise SessionError(f"{event.path}: was set aside by a roll back")
    source, target = _places(job, event)
    if event.iteration not in job.deleted:
        if (why := _needed(session, event)) is not None:
            actions.fail(session, action, f"{KEPT}{why}")
            return None
        kept = [at for at in job.checkpoints if at != event.iteration]
        session.change_job(job, checkpoints=kept, deleted=[*job.deleted, event.iteration])
    # Here and not in a thread: a roll back would give other checkpoints the same name meanwhile. A
    # look has to ask the same folder: where a rename hangs, so does that.
    if not target.exists() and source.exists():
        source.rename(target)
        atomic.sync_directory(target.parent)
        atomic.step()
    return Removal(target, session.refuse_lost)


def _needed(session: Session, event: CheckpointComplete) -> str | None:
    """Why a checkpoint stays, as things are now."""
    for standing in checkpoints_of(session):
        if standing.checkpoint.key == event.key:
            return standing.why if standing.holds else None
    return "it is not known"


def _places(job: JobRecord, event: CheckpointComplete) -> tuple[Path, Path]:
    """A checkpoint, and its name until it is removed: one that no trainer takes for a checkpoint.

    Raises SessionError for a path that is none of the job's.
    """
    folder, name = job.spec.trainer.checkpoint_names(Path(job.spec.save_dir))
    source = Path(event.path)
    again = f"-r{event.generation}" if event.generation else ""
    target = folder / f".autoexp-deleted-{event.iteration}{again}"
    is_own = source.parent == folder and re.fullmatch(name, source.name) is not None
    if not is_own or source.is_symlink() or re.fullmatch(name, target.name):
        raise SessionError(f"{source}: is not a checkpoint of {job.spec.name} in {folder}")
    return source, target


def complete(recorder: Recorder, key: str, files: int, freed: int) -> str:
    """Record that a checkpoint is gone; returns the action's result."""
    session = recorder.session
    event = session.actions[key].event
    assert isinstance(event, CheckpointComplete)
    job = session.jobs[event.job]
    if event.iteration in job.sizes and session.is_valid(event):
        sizes = {at: size for at, size in job.sizes.items() if at != event.iteration}
        session.change_job(job, sizes=sizes)
    facts = event.model_dump(include={"job", "iteration", "path", "generation"})
    recorder.record_and_decide([CheckpointDeleted(**facts, files=files, bytes=freed)])
    return f"{files} files, {in_bytes(freed)}"


def measured(session: Session, event: CheckpointComplete, size: int) -> None:
    """Record the size of a checkpoint, unless it is gone."""
    job = session.jobs.get(event.job)
    if job is not None and session.is_valid(event) and not session.is_deleted(event):
        session.change_job(job, sizes={**job.sizes, event.iteration: size})
