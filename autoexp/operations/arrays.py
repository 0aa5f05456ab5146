"""Submits jobs that start together as one SLURM array: one submission, ids such as `123_4`."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from autoexp import payload
from autoexp.jobs.limits import time_limit
from autoexp.jobs.record import Attempt, JobRecord
from autoexp.jobs.spec import JobSpec
from autoexp.model import now
from autoexp.operations.nodes.avoidance import ToAvoid, to_avoid
from autoexp.schedulers.base import AttemptRef, Scheduler, SubmitOptions, prepare, submit_once
from autoexp.session.session import Session
from autoexp.storage import atomic


class Task(NamedTuple):
    """An attempt that is a task of an array."""

    ref: AttemptRef
    spec: JobSpec
    attempt: Attempt


class Array(NamedTuple):
    """Recorded attempts, ready to be submitted together."""

    name: str
    directory: Path
    script: str
    tasks: tuple[Task, ...]
    avoided: ToAvoid
    fresh: bool
    """True if all of them have just been recorded, so that none can have been submitted."""
    still_ours: Callable[[], None]
    """Raises once the session is another monitor's: asked right before the submission."""

    @property
    def job(self) -> None:
        """It is the submission of several."""

    @property
    def title(self) -> str:
        more = f" and {len(self.tasks) - 1} more" if len(self.tasks) > 1 else ""
        return f"submit {self.tasks[0].spec.name}{more} as an array"

    def run(self, scheduler: Scheduler) -> list[str]:
        """Submit the array once; returns the job ids of its tasks, in their order."""
        for task in self.tasks:
            payload_spec = scheduler.payload_spec(task.spec, task.attempt)
            prepare(task.ref, task.spec, task.attempt, payload_spec)
        attempts = [task.attempt for task in self.tasks]
        _prepare_array(self.directory, attempts)
        request = SubmitOptions(
            name=self.name,
            log=str(self.directory / "task-%a.log"),
            machine=self.tasks[0].spec.machine,
            time_limit_min=attempts[0].time_limit_min,
            tasks=tuple(attempt.array_index or 0 for attempt in attempts),
            avoided=self.avoided.names(self.tasks[0].spec.machine),
            still_ours=self.still_ours,
        )
        ref = AttemptRef(self.name, self.directory, self.name, self.script)
        array_id = submit_once(ref, request, scheduler, fresh=self.fresh)
        return [f"{array_id}_{attempt.array_index}" for attempt in attempts]


def begin(session: Session, names: Sequence[str]) -> Array | None:
    """Record the intent of an array's attempts; None: none of them is wanted now.

    A kill in between leaves a shorter array; the others form another one. After a failed write it
    can be called again, and goes on where it was.
    """
    group = [session.jobs[name] for name in names if not session.jobs[name].is_ending]
    begun = [job for job in group if job.unsubmitted is not None]
    waiting = [job for job in group if job.wants_attempt()]
    most = session.room()
    joining = waiting if most is None else waiting[:most]
    if not begun and not joining:
        return None
    name = begun[0].attempts[-1].name if begun else _new_name(session, joining[0])
    limits = [time_limit(job, session.jobs.get(job.spec.parent or "")) for job in group]
    longest = None if None in limits else max((x for x in limits if x is not None), default=None)
    first = 1 + max((job.attempts[-1].array_index or 0 for job in begun), default=-1)
    for index, job in enumerate(joining, start=first):
        attempt = Attempt(
            number=1,
            key=session.meta.key(job.spec.name, 1),
            name=name,
            array_index=index,
            log=_log(session, name, index),
            intended_at=now(),
            first_iteration=job.saved_iteration,
            before=session.losses_before(job),
            gpus=job.spec.machine.gpus,
            time_limit_min=longest,
        )
        before = session.there_before(job)
        session.change_job(job, attempts=[attempt], there_before=before)
    tasks = tuple(
        Task(session.ref(job.attempts[-1]), job.spec, job.attempts[-1].model_copy())
        for job in (*begun, *joining)
    )
    avoided = to_avoid(session)
    directory = session.path / "attempts" / name
    return Array(
        name, directory, session.meta.script, tasks, avoided, not begun, session.refuse_lost
    )


def may_split(session: Session, names: Iterable[str]) -> bool:
    """True if an array that is above a submit limit is to be split.

    Not while jobs of this session are in the queue, which free places when they end. And not while
    a shorter array waits: as long as that one is too long, splitting the others is in vain.
    """
    attempts = [attempt for job in session.jobs.values() for attempt in job.open_attempts]
    if any(attempt.job_id is not None for attempt in attempts):
        return False
    sizes = Counter(attempt.name for attempt in attempts if attempt.array_index is not None)
    tasks = {attempt.name for name in names if (attempt := session.jobs[name].unsubmitted)}
    return len(tasks) == 1 and 1 < sizes[tasks.pop()] == min(sizes.values())


def split(session: Session, names: Sequence[str]) -> list[str]:
    """Make the second half of an array that the scheduler refused an array of its own.

    Returns the jobs of that half. To be called only once it is certain that the array was not
    submitted; a kill in between leaves two arrays of other lengths.
    """
    group = [session.jobs[name] for name in names if session.jobs[name].unsubmitted is not None]
    moved = group[(len(group) + 1) // 2 :]
    if not moved:
        return []
    name = _new_name(session, moved[0])
    for job in moved:
        attempt = job.attempts[-1]
        # The prepared files name the old log: they are written anew.
        (session.ref(attempt).directory / "spec.json").unlink(missing_ok=True)
        atomic.step()
        log = _log(session, name, attempt.array_index or 0)
        session.change_attempt(job, attempt, {"name": name, "log": log})
    return [job.spec.name for job in moved]


def _log(session: Session, name: str, index: int) -> str:
    return str(session.path / "attempts" / name / f"task-{index}.log")


def _new_name(session: Session, job: JobRecord) -> str:
    names = {a.name for job in session.jobs.values() for a in job.attempts if a.name != a.key}
    return session.meta.array_name(job.spec.kind, len(names) + 1)


def _prepare_array(directory: Path, attempts: Sequence[Attempt]) -> None:
    atomic.make_directory(directory)
    if (directory / payload.TASKS).exists():
        return
    atomic.write(directory / "payload.py", Path(payload.__file__).read_bytes())
    tasks = {str(attempt.array_index): attempt.key for attempt in attempts}
    atomic.write(directory / payload.TASKS, json.dumps(tasks, indent=1) + "\n")
