"""Arrays: jobs that start together are submitted together, and each of them exactly once."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from autoexp import arrays, durable, payload, states
from autoexp.compose import Composed
from autoexp.creation import create
from autoexp.errors import (
    SchedulerUnavailable,
    SubmissionPostponed,
    SubmissionRefused,
    SubmissionUncertain,
)
from autoexp.jobs import Attempt, JobRecord, JobSpec, Kind
from autoexp.machines import LocalMachine, SlurmCluster
from autoexp.schedulers.base import Orders, Request, Sighting, Ticket
from autoexp.session import Session
from tests.core.conftest import spec_of

POINTS = (100, 200, 300)


class Killed(BaseException):
    """The monitor is gone, at this very line."""


class Fate:
    """Decides at which durable step the monitor dies; the scheduler and its jobs live on."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.steps_left = 0
        self._watches = False
        patch.setattr(durable, "step", self._step)
        # A kill of a process loses nothing that was written, and nobody has to wait for a time.
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(time, "sleep", lambda seconds: None)

    def spares(self, act: Callable[[], object]) -> bool:
        """Whether `act` comes to its end before the last of the steps that are left."""
        self._watches = True
        try:
            act()
        except Killed:
            self.steps_left = 0
            return False
        finally:
            self._watches = False
        return True

    def _step(self) -> None:
        if self._watches and self.steps_left:
            self.steps_left -= 1
            if not self.steps_left:
                raise Killed


class FakeJob:
    """A job in the queue, which knows what was laid out for it before it was submitted."""

    def __init__(self, name: str, directory: Path, after: str | None) -> None:
        self.name, self.after, self.state = name, after, "PENDING"
        self.spec: dict[str, Any] = json.loads((directory / "spec.json").read_text())
        assert Path(self.spec["log"]).parent.is_dir(), "the log cannot be opened"

    @property
    def is_alive(self) -> bool:
        return not states.is_terminal(self.state)


class FakeScheduler:
    """Takes jobs, knows them by name, loses answers and falls silent when it is told to."""

    def __init__(self) -> None:
        self.jobs: dict[str, FakeJob] = {}
        self.submissions: Counter[str] = Counter()
        self.calls = 0
        self.silent = self.full = False
        self.next_time: str | None = None
        """What comes of the next submission: it is refused, or somebody dies over it."""
        self._sbatch: tuple[Ticket, Request, int] | None = None

    def orders(self, spec: JobSpec, attempt: Attempt) -> Orders:
        return Orders(spec.command, spec.environment, 1.0)

    def longest_array(self) -> int:
        return 100

    def submit(self, ticket: Ticket, request: Request, lock: int) -> str:
        if self.silent:
            raise SubmissionUncertain("Unable to contact slurm controller")
        if self.full:
            raise SubmissionPostponed("AssocMaxSubmitJobLimit")
        how, self.next_time = self.next_time, None
        if how == "refused":
            raise SubmissionRefused("Invalid account")
        if how == "outlives":
            # The monitor dies, and the sbatch that it started goes on with the lock.
            self._sbatch = (ticket, request, os.dup(lock))
            raise Killed
        job_id = self._accept(ticket, request)
        if how == "dies":
            raise Killed
        if how == "answer lost":
            raise SubmissionUncertain("Socket timed out")
        return job_id

    def _accept(self, ticket: Ticket, request: Request) -> str:
        self.calls += 1
        number = str(99 + self.calls)
        jobs = {number: ticket.directory}
        if request.tasks:
            keys = json.loads((ticket.directory / payload.TASKS).read_text())
            jobs = {f"{number}_{n}": ticket.directory.parent / keys[str(n)] for n in request.tasks}
        for job_id, directory in jobs.items():
            self.jobs[job_id] = FakeJob(request.name, directory, request.after)
            self.submissions[self.jobs[job_id].spec["key"]] += 1
        return number

    def find(self, ticket: Ticket, *, in_flight: bool) -> str | None:
        self._answer()
        found = [job_id for job_id, job in self.jobs.items() if job.name == ticket.name]
        if self._sbatch is not None:
            (waiting, request, lock), self._sbatch = self._sbatch, None
            self._accept(waiting, request)  # too late for this answer
            os.close(lock)
        return found[0].partition("_")[0] if found else None

    def query(self, tickets: list[Ticket]) -> dict[str, Sighting]:
        self._answer()
        assert all(self.jobs[str(t.job_id)].name == t.name for t in tickets)
        return {t.key: Sighting(self.jobs[str(t.job_id)].state) for t in tickets}

    def cancel(self, tickets: list[Ticket]) -> dict[str, str]:
        self._answer()
        for job in (self.jobs[str(ticket.job_id)] for ticket in tickets):
            job.state = "CANCELLED" if job.is_alive else job.state
        return {ticket.key: "accepted" for ticket in tickets}

    def _answer(self) -> None:
        if self.silent:
            raise SchedulerUnavailable("Unable to contact slurm controller")


class Branches(NamedTuple):
    """A session whose three cooldowns have been launched at once."""

    path: Path
    session: Session
    scheduler: FakeScheduler

    @property
    def jobs(self) -> list[JobRecord]:
        return [job for job in self.session.jobs.values() if job.spec.kind is Kind.COOLDOWN]

    def drive(self) -> None:
        """Bring them to the scheduler, as a monitor does that has just started."""
        wanted = [job for job in self.jobs if job.unsubmitted or not job.attempts]
        for group in arrays.groups(wanted, 100):
            fresh = group[0].unsubmitted is None
            joining = arrays.begin(self.session, group) if fresh else group
            if joining:
                ids = arrays.submit(self.session, joining, self.scheduler, fresh=fresh)
                for job, job_id in zip(joining, ids, strict=True):
                    self.session.record_submission(job, job.attempts[-1], job_id)

    def resume(self) -> "Branches":
        return self._replace(session=Session.load(self.path))


@pytest.fixture
def branches(tmp_path: Path, composed: Composed) -> Callable[..., Branches]:
    """`branches(**machine)`: three cooldowns, launched, on a cluster that takes arrays."""

    def make(root: str = "sessions", **machine: Any) -> Branches:
        slurm = SlurmCluster(arrays=True, **machine)
        cooldown = composed.experiment.cooldowns[0].model_copy(update={"at": POINTS})
        changes = {"slurm": slurm, "cooldowns": (cooldown,)}
        changed = composed._replace(experiment=composed.experiment.model_copy(update=changes))
        path = create(changed, tmp_path / root, session_id="s1")
        made = Branches(path, Session.load(path), FakeScheduler())
        for job in made.jobs:
            made.session.change_job(job, launched=True)
        return made

    return make


Make = Callable[..., Branches]


def names(groups: list[arrays.Group]) -> list[list[str]]:
    return [[job.spec.name for job in group] for group in groups]


# Grouping


def test_alike_jobs_go_together_and_different_machines_and_kinds_apart() -> None:
    small, big = SlurmCluster(arrays=True), SlurmCluster(arrays=True, nodes=2, launcher="srun")
    single, here = SlurmCluster(arrays=False), LocalMachine()
    machines = {"a": small, "b": big, "c": small, "d": single, "e": single, "f": here, "g": big}
    specs = [spec_of("true", name=name, machine=machine) for name, machine in machines.items()]
    specs.append(spec_of("true", name="h", machine=small, kind=Kind.EVALUATE))
    found = names(arrays.groups([JobRecord(spec=spec) for spec in specs], 10))
    assert sorted(found) == [["a", "c"], ["b", "g"], ["d"], ["e"], ["f"], ["h"]]


@pytest.mark.parametrize(("longest", "sizes"), [(1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (99, [7])])
def test_a_group_is_no_longer_than_slurm_takes_arrays(longest: int, sizes: list[int]) -> None:
    machine = SlurmCluster(arrays=True)
    jobs = [JobRecord(spec=spec_of("true", name=f"j{n}", machine=machine)) for n in range(7)]
    groups = arrays.groups(jobs, longest)
    assert [len(group) for group in groups] == sizes
    assert [job for group in groups for job in group] == jobs


def test_a_job_that_has_run_before_goes_alone(branches: Make) -> None:
    made = branches()
    attempt = made.session.begin_attempt(made.jobs[1])
    assert attempt is not None
    made.session.record_submission(made.jobs[1], attempt, "7")
    found = names(arrays.groups(made.jobs, 9))
    assert sorted(found) == [["tiny-cd100", "tiny-cd300"], ["tiny-cd200"]]


# One submission


def test_an_array_is_one_submission_and_its_ids_name_the_tasks(branches: Make) -> None:
    made = branches()
    made.drive()
    assert (made.scheduler.calls, list(made.scheduler.jobs)) == (1, ["100_0", "100_1", "100_2"])
    attempts = [job.attempts[0] for job in made.resume().jobs]
    assert [a.job_id for a in attempts] == ["100_0", "100_1", "100_2"]
    assert {a.name for a in attempts} == {"s1-cooldown-array1"}
    assert [a.key for a in attempts] == [f"s1-tiny-cd{point}-a1" for point in POINTS]
    laid_out = [made.scheduler.jobs[str(a.job_id)].spec for a in attempts]
    assert [(s["key"], s["log"]) for s in laid_out] == [(a.key, a.log) for a in attempts]


def test_an_array_takes_no_more_than_the_room_in_the_queue(branches: Make) -> None:
    made = branches(max_jobs=2)
    made.drive()
    assert [len(job.open_attempts) for job in made.jobs] == [1, 1, 0]
    assert arrays.begin(made.session, made.jobs[2:]) == []
    made.jobs[0].attempts[0].state = "COMPLETED"
    (late,) = arrays.begin(made.session, made.jobs[2:])
    assert (late.attempts[0].name, late.attempts[0].array_index) == ("s1-cooldown-array2", 0)


def test_a_job_that_was_cancelled_in_the_meantime_joins_no_array(branches: Make) -> None:
    made = branches()
    (group,) = arrays.groups(made.jobs, 9)
    made.session.change_job(made.jobs[1], cancel_requested="ann")
    assert names([arrays.begin(made.session, group)]) == [["tiny-cd100", "tiny-cd300"]]
    assert made.jobs[1].attempts == []


@pytest.mark.parametrize("written", [0, 1, 2])
def test_an_array_whose_intent_could_not_be_written_whole_is_begun_again_whole(
    branches: Make, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    made = branches(max_jobs=3)
    (group,) = arrays.groups(made.jobs, 9)
    write, left = Session.save_job, iter(range(written))

    def until_full(session: Session, job: JobRecord) -> None:
        if next(left, None) is None:
            raise OSError("no space left on device")
        write(session, job)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "save_job", until_full)
        with pytest.raises(OSError):
            arrays.begin(made.session, group)
    assert len(arrays.begin(made.session, group)) == 3
    assert len({job.attempts[0].name for job in group}) == 1


@pytest.mark.parametrize("how", [None, "outlives", "answer lost"])
def test_a_kill_at_any_step_ends_with_each_job_submitted_once(
    branches: Make, monkeypatch: pytest.MonkeyPatch, how: str | None
) -> None:
    fate = Fate(monkeypatch)
    for n in range(1, 40):
        made = branches(str(n))
        made.scheduler.next_time = how
        fate.steps_left = n
        try:
            fate.spares(made.drive)
        except SubmissionUncertain:
            pass
        made.scheduler.next_time = None
        made.resume().drive()
        assert made.scheduler.submissions == {f"s1-tiny-cd{point}-a1": 1 for point in POINTS}
        # Killed while the intents were written, they go as two arrays, whose names differ.
        assert made.scheduler.calls == len({job.name for job in made.scheduler.jobs.values()}) <= 2
        for job in made.resume().jobs:
            (attempt,) = job.attempts
            known = made.scheduler.jobs[str(attempt.job_id)]
            assert (known.spec["key"], known.name) == (attempt.key, attempt.name)


# What runs in a task


def test_each_task_runs_the_attempt_that_its_index_stands_for(branches: Make) -> None:
    made = branches()
    for job in made.jobs:
        job.spec = job.spec.model_copy(update={"command": ("echo", job.spec.name)})
    made.drive()
    script = made.path / "attempts" / "s1-cooldown-array1" / "payload.py"
    for index in ("2", "0", "1"):
        slurm = {"SLURM_ARRAY_JOB_ID": "100", "SLURM_ARRAY_TASK_ID": index, "SLURM_JOB_ID": "777"}
        subprocess.run([sys.executable, str(script)], env={**os.environ, **slurm}, check=True)
    for job in made.jobs:
        attempt = job.attempts[0]
        assert Path(attempt.log).read_text() == f"{job.spec.name}\n"
        ended = json.loads((made.path / "attempts" / attempt.key / "exit.json").read_text())
        assert (ended["job_id"], ended["exit_code"]) == (attempt.job_id, 0)
