"""Sessions to measure: any number of jobs with real-sized specifications, logs, checkpoints."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from unittest import mock

from autoexp.backends.megatron.formats import TRACKER
from autoexp.config.compose import Composed, compose
from autoexp.jobs.record import Attempt, JobRecord
from autoexp.jobs.spec import JobSpec
from autoexp.model import now
from autoexp.planning.plan import NO_JOBS
from autoexp.session.create import create
from autoexp.session.session import Session
from autoexp.states import Kind

# As many arguments and variables as a Megatron run on a real cluster has.
_ARGUMENTS = 150
_VARIABLES = 40
LAST = 10_000_000
"""Target iteration of all jobs: they never end by themselves."""


def experiment(*overrides: str) -> Composed:
    """The demo's experiment with a real-sized trunk; cooldowns are the caller's."""
    return compose("demo", ["project.name=big", "cooldowns=[]", *overrides])


def real_sized(spec: JobSpec, name: str, output: Path) -> JobSpec:
    """A specification of the size that real trainings have."""
    flags = [word for n in range(_ARGUMENTS // 2) for word in (f"--some-long-option-{n}", str(n))]
    variables = {f"SOME_LONG_VARIABLE_{n}": f"a value as long as a path {n}" for n in range(40)}
    changes = {
        "name": name,
        "kind": Kind.TRAIN,
        "command": (*spec.command, *flags),
        "environment": {**spec.environment, **variables},
        "output_dir": str(output / name),
        "save_dir": str(output / name / "checkpoints"),
        "target_iteration": LAST,
    }
    return spec.model_copy(update=changes)


def log_lines(first: int, count: int) -> bytes:
    """Iteration lines as Megatron-LM prints them (docs/performance.md has a sample)."""
    return b"".join(
        b" [2026-11-24 10:00:00] iteration %8d/%8d | consumed samples: %12d | elapsed time per "
        b"iteration (ms): 812.1 | throughput per GPU (TFLOP/s/GPU): 401.2 | learning rate: "
        b"2.000000E-03 | global batch size:  1024 | lm loss: 2.%06dE+00 | loss scale: 1.0 | grad "
        b"norm: 0.211 | number of skipped iterations:   0 | number of nan iterations:   0 |\n"
        % (number, LAST, number * 1024, number % 1_000_000)
        for number in range(first, first + count)
    )


@contextmanager
def unsynced() -> Iterator[None]:
    """Building a world needs no power cut's safety; it would take minutes."""
    with mock.patch.object(os, "fsync", lambda descriptor: None):
        yield


def build(root: Path, jobs: int, *overrides: str, lines: int = 200, saves: int = 3) -> Path:
    """A session of running jobs, each with a log and complete checkpoints; returns its path."""
    with unsynced():
        path = create(experiment(*overrides), NO_JOBS, root, session_id="big")
        session = Session.load(path)
        plan = compose("demo", ["cooldowns=[]", *overrides])
        trunk = _trunk(plan, root)
        text = log_lines(1, lines)
        for number in range(jobs):
            job = running(session, real_sized(trunk, f"run{number:05d}", path / "output"), number)
            Path(job.attempts[-1].log).write_bytes(text)
            for count in range(1, saves + 1):
                save(Path(job.spec.save_dir), count * 100)
            session.jobs[job.spec.name] = job
            session.meta.jobs.append(job.spec.name)
            session.save_job(job)
        session.save_meta()
    age(path)
    return path


def _trunk(composed: Composed, root: Path) -> JobSpec:
    from autoexp.planning.plan import make_plan

    return make_plan(composed.experiment, root / "output").trunk


def running(session: Session, spec: JobSpec, number: int) -> JobRecord:
    """A job whose first attempt runs, with its directories."""
    key = session.meta.key(spec.name, 1)
    directory = session.path / "attempts" / key
    directory.mkdir(parents=True)
    Path(spec.save_dir).mkdir(parents=True)
    attempt = Attempt(
        number=1,
        key=key,
        name=key,
        log=str(directory / "job.log"),
        job_id=str(1000 + number),
        state="RUNNING",
        intended_at=now() - timedelta(hours=1),
        submitted_at=now() - timedelta(hours=1),
        started_at=now() - timedelta(hours=1),
        first_iteration=0,
    )
    return JobRecord(spec=spec, attempts=[attempt], launched=True)


def folder_name(iteration: int) -> str:
    """The name that Megatron-LM gives a checkpoint: `iter_0001000` for 1000."""
    return f"iter_{iteration:07d}"


def save(save_dir: Path, iteration: int) -> None:
    """A complete checkpoint, its files in the order in which Megatron-LM writes them."""
    folder = save_dir / folder_name(iteration)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".metadata").write_bytes(b"x")
    (folder / "metadata.json").write_text("{}")
    (save_dir / TRACKER).write_text(str(iteration))


def age(path: Path) -> None:
    """Make all files of a session an hour old: what is fresh is looked at twice."""
    past = time.time() - 3600
    for file in path.rglob("*"):
        os.utime(file, (past, past))


def grow(session: Session, first: int, count: int) -> int:
    """Append lines to every job's log; returns how many bytes in all."""
    return sum(grow_job(job, first, count) for job in session.jobs.values())


def grow_job(job: JobRecord, first: int, count: int) -> int:
    """Append lines to a job's log; returns how many bytes."""
    text = log_lines(first, count)
    with Path(job.attempts[-1].log).open("ab") as file:
        return file.write(text)
