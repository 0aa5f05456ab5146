"""Arrays: jobs that start together are submitted together, and each of them exactly once."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from autoexp import errors, payload, states
from autoexp.backends.megatron.formats import TORCH_DIST, TRACKER
from autoexp.config.compose import Composed
from autoexp.jobs.record import Attempt, JobRecord
from autoexp.jobs.spec import JobSpec
from autoexp.monitor.steps import Group, groups
from autoexp.operations import arrays
from autoexp.resources.machines import LocalMachine, SlurmCluster
from autoexp.schedulers.base import (
    AttemptRef,
    JobStatus,
    PayloadSpec,
    SubmitOptions,
    find_or_forbid,
)
from autoexp.session.session import Session
from autoexp.states import Kind
from autoexp.storage import atomic
from bench.world import sessions
from tests.core.conftest import create, spec_of


class Killed(BaseException):
    """The monitor is gone, at this very line."""


class Fate:
    """Decides at which durable step the monitor dies; the scheduler and its jobs live on."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.steps_left = 0
        patch.setattr(atomic, "step", self._step)
        # A kill loses nothing that was written, and no test waits for time to pass.
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(time, "sleep", lambda seconds: None)

    def spares(self, act: Callable[[], object]) -> bool:
        """Whether `act` comes to its end before the last of the steps that are left."""
        with suppress(Killed):
            act()
            return True
        self.steps_left = 0
        return False

    def _step(self) -> None:
        self.steps_left -= 1
        if self.steps_left == 0:
            raise Killed


class FakeJob:
    """A job in the queue and its trainer, which knows no more than what was laid out for it."""

    def __init__(self, name: str, directory: Path, after: str | None) -> None:
        self.name, self.after, self.state = name, after, "PENDING"
        self.spec: dict[str, Any] = json.loads((directory / "spec.json").read_text())
        self.log, self.output = Path(self.spec["log"]), Path(self.spec["cwd"])
        assert self.log.parent.is_dir(), "the log cannot be opened"
        flags = dict(zip(self.spec["command"], self.spec["command"][1:], strict=False))
        self.target = int(flags.get("--train-iters", 0))
        self.saves = self.output / "checkpoints"
        self.start()

    def start(self) -> None:
        self.iteration, self.unfinished = TORCH_DIST.tracked(self.saves) or 0, False

    def train(self, metadata: str | None = None) -> bool:
        """Save the next checkpoint, or leave it with `metadata`; returns whether it is complete."""
        assert self.iteration or "--exit-on-missing-checkpoint" not in self.spec["command"]
        if not self.unfinished:
            if self.iteration >= self.target:
                self.state = "COMPLETED"
                return False
            self.iteration = min(self.target, self.iteration // 100 * 100 + 100)
        self.unfinished = not self.unfinished and metadata is not None
        line = f" iteration {self.iteration:8d}/ {self.target} | lm loss: 2.5 |\n"
        with self.log.open("a") as log:
            log.write(line[:20] if self.unfinished else line)
        folder = self.saves / sessions.folder_name(self.iteration)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".metadata").write_text("")
        (folder / "metadata.json").write_text(str(metadata) if self.unfinished else "{}")
        if self.unfinished:
            return False
        (self.saves / TRACKER).write_text(str(self.iteration))
        return True


class FakeScheduler:
    """Takes jobs, knows them by name, loses answers and falls silent when it is told to."""

    def __init__(self) -> None:
        self.jobs: dict[str, FakeJob] = {}
        self.submissions: Counter[str] = Counter()
        self.silent = self.full = False
        self.most: int | None = None
        """How many jobs the user may have."""
        self.refusals = 0
        self.next_time: str | None = None  # what comes of the next submission
        self._sbatch: tuple[AttemptRef, SubmitOptions, int] | None = None

    @property
    def alive(self) -> list[str]:
        return [i for i, job in self.jobs.items() if not states.is_terminal(job.state)]

    def payload_spec(self, spec: JobSpec, attempt: Attempt) -> PayloadSpec:
        return PayloadSpec(spec.command, spec.environment, 1.0)

    def submit(self, ref: AttemptRef, request: SubmitOptions, lock: int) -> str:
        if self.full or self.silent:
            raise errors.SubmissionPostponed if self.full else errors.SubmissionUncertain
        if self.most is not None and len(self.alive) + max(1, len(request.tasks)) > self.most:
            self.refusals += 1
            raise errors.SubmitLimitReached("QOSMaxSubmitJobPerUserLimit")
        how, self.next_time = self.next_time, None
        if how == "refused":
            raise errors.SubmissionRefused("Invalid account")
        if how == "outlives":  # the monitor's sbatch goes on, with the lock
            self._sbatch = (ref, request, os.dup(lock))
            raise Killed
        job_id = self._accept(ref, request)
        if how is not None:
            raise Killed if how == "dies" else errors.SubmissionUncertain("Socket timed out")
        return job_id

    def _accept(self, ref: AttemptRef, request: SubmitOptions) -> str:
        number = str(100 + len(self.jobs))
        jobs = {number: ref.directory}
        if request.tasks:
            keys = json.loads((ref.directory / payload.TASKS).read_text())
            jobs = {f"{number}_{n}": ref.directory.parent / keys[str(n)] for n in request.tasks}
        for job_id, directory in jobs.items():
            self.jobs[job_id] = FakeJob(request.name, directory, request.after)
            self.submissions[self.jobs[job_id].spec["key"]] += 1
        return number

    def longest_array(self) -> int:
        return 100

    def find(self, ref: AttemptRef, *, in_flight: bool) -> str | None:
        self._answer()
        found = [job_id for job_id, job in self.jobs.items() if job.name == ref.name]
        if self._sbatch is not None:
            (waiting, request, lock), self._sbatch = self._sbatch, None
            self._accept(waiting, request)  # too late for this answer
            os.close(lock)
        if found and (ref.directory / payload.TASKS).exists():
            return found[0].partition("_")[0]
        return found[0] if found else None

    def query(self, refs: list[AttemptRef]) -> dict[str, JobStatus]:
        self._answer()
        return {t.key: JobStatus(self.jobs[str(t.job_id)].state) for t in refs}

    def cancel(self, refs: list[AttemptRef]) -> dict[str, str]:
        self._answer()
        for job_id in {str(ref.job_id) for ref in refs} & set(self.alive):
            self.jobs[job_id].state = "CANCELLED"
        return {ref.key: "accepted" for ref in refs}

    def _answer(self) -> None:
        if self.silent:
            raise errors.SchedulerUnavailable("Unable to contact slurm controller")


class Branches(NamedTuple):
    """A session whose three cooldowns have been launched at once."""

    path: Path
    session: Session
    scheduler: FakeScheduler

    @property
    def jobs(self) -> list[JobRecord]:
        return [job for job in self.session.jobs.values() if job.spec.kind is Kind.COOLDOWN]

    @property
    def keys(self) -> list[str]:
        """Those of their first attempts."""
        return [self.session.meta.key(job.spec.name, 1) for job in self.jobs]

    def drive(self) -> None:
        """Bring them to the scheduler, as a monitor does that has just started."""
        wanted = [job for job in self.jobs if job.unsubmitted or not job.attempts]
        for group in groups(wanted, 100):
            array = begin(self.session, group)
            assert array is not None
            ids = array.run(self.scheduler)
            for task, job_id in zip(array.tasks, ids, strict=True):
                job = self.session.jobs[task.spec.name]
                self.session.record_submission(job, job.attempts[-1], job_id)

    def resume(self) -> "Branches":
        return self._replace(session=Session.load(self.path))


def begin(session: Session, jobs: list[JobRecord]) -> arrays.Array | None:
    return arrays.begin(session, [job.spec.name for job in jobs])


def tasks(array: arrays.Array | None) -> list[str]:
    return [task.spec.name for task in array.tasks] if array else []


Make = Callable[..., Branches]


@pytest.fixture
def branches(tmp_path: Path, composed: Composed) -> Make:
    """`branches(**machine)`: a session on a cluster that takes arrays."""

    def make(root: str = "sessions", **machine: Any) -> Branches:
        cooldown = composed.experiment.cooldowns[0].model_copy(update={"at": (100, 200, 300)})
        changes = {"slurm": SlurmCluster(arrays=True, **machine), "cooldowns": (cooldown,)}
        changed = composed._replace(experiment=composed.experiment.model_copy(update=changes))
        path = create(changed, tmp_path / root, session_id="s1")
        made = Branches(path, Session.load(path), FakeScheduler())
        for job in made.jobs:
            made.session.change_job(job, launched=True)
        return made

    return make


def names(groups: list[Group]) -> list[list[str]]:
    return [[job.spec.name for job in group] for group in groups]


def test_alike_jobs_go_together_and_different_machines_and_kinds_apart() -> None:
    small, big = SlurmCluster(arrays=True), SlurmCluster(arrays=True, nodes=2, launcher="srun")
    single, here = SlurmCluster(arrays=False), LocalMachine()
    machines = {"a": small, "b": big, "c": small, "d": single, "e": single, "f": here, "g": big}
    specs = [spec_of("true", name=name, machine=machine) for name, machine in machines.items()]
    specs.append(spec_of("true", name="h", machine=small, kind=Kind.EVALUATE))
    found = names(groups([JobRecord(spec=spec) for spec in specs], 10))
    assert sorted(found) == [["a", "c"], ["b", "g"], ["d"], ["e"], ["f"], ["h"]]


@pytest.mark.parametrize(("longest", "sizes"), [(1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (99, [7])])
def test_a_group_is_no_longer_than_slurm_takes_arrays(longest: int, sizes: list[int]) -> None:
    machine = SlurmCluster(arrays=True)
    jobs = [JobRecord(spec=spec_of("true", name=f"j{n}", machine=machine)) for n in range(7)]
    found = groups(jobs, longest)
    assert [len(group) for group in found] == sizes
    assert [job for group in found for job in group] == jobs


def test_an_array_takes_no_more_than_the_room_in_the_queue(branches: Make) -> None:
    made = branches(max_jobs=2)
    made.drive()
    assert [len(job.open_attempts) for job in made.jobs] == [1, 1, 0]
    assert begin(made.session, made.jobs[2:]) is None
    made.jobs[0].attempts[0].state = "COMPLETED"
    late = begin(made.session, made.jobs[2:])
    assert late is not None and late.fresh
    (task,) = late.tasks
    assert (task.attempt.name, task.attempt.array_index) == (
        made.session.meta.array_name("cooldown", 2),
        0,
    )


def test_an_array_is_begun_again_whole_but_for_who_was_cancelled_in_the_meantime(
    branches: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = branches(max_jobs=2)
    with monkeypatch.context() as patch:
        write, left = Session.save_job, iter("1")  # whose end stands for a full disk
        patch.setattr(Session, "save_job", lambda *job: next(left) and write(*job))
        with pytest.raises(StopIteration):
            begin(made.session, made.jobs)
    made.session.change_job(made.jobs[1], cancel_requested="ann")
    assert tasks(begin(made.session, made.jobs)) == ["tiny-cd100", "tiny-cd300"]
    assert made.jobs[0].attempts[0].name == made.jobs[2].attempts[0].name


@pytest.mark.parametrize("how", [None, "outlives", "dies"])
def test_a_kill_at_any_step_ends_with_each_job_submitted_once(
    branches: Make, monkeypatch: pytest.MonkeyPatch, how: str | None
) -> None:
    fate = Fate(monkeypatch)
    for n in range(1, 40):
        made = branches(str(n))
        fate.steps_left, made.scheduler.next_time = n, how
        fate.spares(made.drive)
        fate.steps_left, made.scheduler.next_time = 0, None
        made.resume().drive()
        assert made.scheduler.submissions == dict.fromkeys(made.keys, 1)
        # Killed while the intents were written, they go as two arrays.
        assert len({job.name for job in made.scheduler.jobs.values()}) <= 2
        for job in made.resume().jobs:
            (attempt,) = job.attempts
            known = made.scheduler.jobs[str(attempt.job_id)]
            assert (known.spec["key"], known.name) == (attempt.key, attempt.name)


@pytest.mark.parametrize("how", [None, "outlives", "dies"])
def test_a_task_that_is_no_longer_wanted_is_found_if_the_array_was_submitted(
    branches: Make, monkeypatch: pytest.MonkeyPatch, how: str | None
) -> None:
    made, fate = branches(), Fate(monkeypatch)
    made.scheduler.next_time = how
    if how is not None:
        assert not fate.spares(made.drive)
    else:
        begin(made.session, made.jobs)
    session = Session.load(made.path)
    attempt = session.jobs["tiny-cd200"].attempts[0]
    ref = session.submission_ref(attempt)
    found = find_or_forbid(ref, attempt, made.scheduler)
    assert found == (None if how is None else "100_1")
    # Where it was not submitted, nobody will run it; the others go their way.
    assert payload.claim(session.ref(attempt).directory, "100_1") is (how is not None)
    assert find_or_forbid(ref, attempt, made.scheduler) == found
    if how is None:
        session.withdraw(session.jobs["tiny-cd200"], attempt)
        session.change_job(session.jobs["tiny-cd200"], cancel_requested="ann")
        others = [job for job in made.resume().jobs if job.unsubmitted]
        array = begin(session, [session.jobs[job.spec.name] for job in others])
        assert array is not None and not array.fresh
        assert array.run(made.scheduler) == ["100_0", "100_2"]
        assert made.scheduler.submissions == {made.keys[0]: 1, made.keys[2]: 1}


def test_each_task_runs_the_attempt_that_its_index_stands_for(branches: Make) -> None:
    made = branches()
    for job in made.jobs:
        job.spec = job.spec.model_copy(update={"command": ("echo", job.spec.name)})
    made.drive()
    script = made.path / "attempts" / made.session.meta.array_name("cooldown", 1) / "payload.py"
    for index in ("2", "0", "1"):
        slurm = {"SLURM_ARRAY_JOB_ID": "100", "SLURM_ARRAY_TASK_ID": index, "SLURM_JOB_ID": "777"}
        subprocess.run([sys.executable, str(script)], env={**os.environ, **slurm}, check=True)
    for index, job in enumerate(made.resume().jobs):
        attempt = job.attempts[0]
        assert (attempt.key, attempt.job_id) == (made.keys[index], f"100_{index}")
        assert Path(attempt.log).read_text() == f"{job.spec.name}\n"
