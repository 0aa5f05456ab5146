"""Arrays: jobs that start together are submitted together, and each of them exactly once."""

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from autoexp import acting, arrays, durable, payload, states
from autoexp.compose import Composed
from autoexp.creation import create
from autoexp.errors import (
    SchedulerUnavailable,
    SubmissionPostponed,
    SubmissionRefused,
    SubmissionUncertain,
)
from autoexp.events import CheckpointComplete
from autoexp.jobs import Attempt, JobRecord, JobSpec, Kind
from autoexp.machines import LocalMachine, SlurmCluster
from autoexp.rules import decide, rules_of
from autoexp.schedulers.base import Orders, Request, Sighting, Ticket
from autoexp.session import Session
from tests.core.conftest import spec_of


class Killed(BaseException):
    """The monitor is gone, at this very line."""


class Fate:
    """Decides at which durable step the monitor dies; the scheduler and its jobs live on."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.steps_left = 0
        patch.setattr(durable, "step", self._step)
        # What is killed here is no machine: nothing that was written is lost.
        patch.setattr(os, "fsync", lambda descriptor: None)

    def lets_live(self, act: Callable[[], object], *, until: int) -> bool:
        """Whether `act` comes to its end before the step with this number."""
        self.steps_left = until
        try:
            act()
        except Killed:
            return False
        finally:
            self.steps_left = 0
        return True

    def _step(self) -> None:
        self.steps_left -= 1
        if self.steps_left == 0:
            raise Killed


class FakeJob:
    """A job in the queue, which knows what was laid out for it before it was submitted."""

    def __init__(self, name: str, directory: Path, after: str | None) -> None:
        self.name, self.after, self.state = name, after, "PENDING"
        self.spec: dict[str, Any] = json.loads((directory / "spec.json").read_text())
        assert Path(self.spec["log"]).parent.is_dir(), "SLURM could not open the log"

    @property
    def is_alive(self) -> bool:
        return not states.is_terminal(self.state)


class FakeScheduler:
    """Takes jobs, knows them by name, loses answers and falls silent when it is told to.

    It outlives every monitor, and whoever submits too late is what it counts.
    """

    def __init__(self, longest: int = 100) -> None:
        self.longest = longest
        self.jobs: dict[str, FakeJob] = {}
        self.submissions: Counter[str] = Counter()
        self.calls = 0
        self.silent = False
        self.next_time: str | None = None
        self._sbatch: tuple[Ticket, Request, int] | None = None

    def orders(self, spec: JobSpec, attempt: Attempt) -> Orders:
        del attempt
        return Orders(spec.command, spec.environment, 1.0)

    def longest_array(self) -> int:
        return self.longest

    def submit(self, ticket: Ticket, request: Request, lock: int) -> str:
        if self.silent:
            raise SubmissionUncertain("Unable to contact slurm controller")
        what_happens, self.next_time = self.next_time, None
        match what_happens:
            case "refused":
                raise SubmissionRefused("Invalid account")
            case "postponed":
                raise SubmissionPostponed("Job violates accounting/QOS policy")
            case "outlives":
                # The monitor dies, and the sbatch that it started goes on with the lock.
                self._sbatch = (ticket, request, os.dup(lock))
                raise Killed
        job_id = self._accept(ticket, request)
        if what_happens == "answer lost":
            raise SubmissionUncertain("Socket timed out")
        return job_id

    def _accept(self, ticket: Ticket, request: Request) -> str:
        self.calls += 1
        number = str(99 + self.calls)
        if request.tasks:
            tasks = json.loads((ticket.directory / payload.TASKS).read_text())
            for index in request.tasks:
                directory = ticket.directory.parent / tasks[str(index)]
                self._add(f"{number}_{index}", FakeJob(request.name, directory, None))
        else:
            self._add(number, FakeJob(request.name, ticket.directory, request.after))
        return number

    def _add(self, job_id: str, job: FakeJob) -> None:
        self.jobs[job_id] = job
        self.submissions[job.spec["key"]] += 1

    def find(self, ticket: Ticket, *, in_flight: bool) -> str | None:
        self._answer()
        found = [job_id for job_id, job in self.jobs.items() if job.name == ticket.name]
        if in_flight and self._sbatch is not None:
            waiting, request, lock = self._sbatch
            self._sbatch = None
            self._accept(waiting, request)  # too late for this answer
            os.close(lock)
        return found[0].partition("_")[0] if found else None

    def query(self, tickets: list[Ticket]) -> dict[str, Sighting]:
        self._answer()
        for ticket in tickets:
            assert self.jobs[str(ticket.job_id)].name == ticket.name
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
    """A session whose cooldowns have all been launched at once."""

    path: Path
    session: Session
    scheduler: FakeScheduler

    @property
    def jobs(self) -> list[JobRecord]:
        return [job for job in self.session.jobs.values() if job.spec.kind is Kind.COOLDOWN]

    def drive(self) -> None:
        """Bring what is launched to the scheduler, as a monitor does that has just started."""
        wanted = [job for job in self.jobs if not job.is_over]
        for group in arrays.groups(wanted, self.scheduler.longest):
            begun = group[0].unsubmitted is not None
            joining = group if begun else arrays.begin(self.session, group)
            waiting = [job for job in joining if job.unsubmitted is not None]
            if waiting:
                ids = arrays.submit(self.session, waiting, self.scheduler, fresh=not begun)
                for job, job_id in zip(waiting, ids, strict=True):
                    self.session.record_submission(job, job.attempts[-1], job_id)

    def resume(self) -> "Branches":
        return self._replace(session=Session.load(self.path))


POINTS = (100, 200, 300)


@pytest.fixture
def branches(tmp_path: Path, composed: Composed) -> Any:
    """`branches(**machine)`: three cooldowns, launched, on a cluster that takes arrays."""

    def make(root: str = "sessions", **machine: Any) -> Branches:
        slurm = SlurmCluster(arrays=True, **machine)
        every = composed.experiment.cooldowns[0].model_copy(update={"at": POINTS})
        changes = {"slurm": slurm, "cooldowns": (every,)}
        changed = composed._replace(experiment=composed.experiment.model_copy(update=changes))
        path = create(changed, tmp_path / root, session_id="s1")
        session = Session.load(path)
        for point in POINTS:
            event = CheckpointComplete(job="tiny", iteration=point, path="/c")
            (action,) = decide(event, rules_of(session.plan))
            acting.complete(session, action, acting.begin(session, action))
        return Branches(path, session, FakeScheduler())

    return make


def names(groups: list[arrays.Group]) -> list[list[str]]:
    return [[job.spec.name for job in group] for group in groups]


# Grouping


def test_alike_jobs_go_together_and_different_machines_and_kinds_apart() -> None:
    small, big = SlurmCluster(arrays=True), SlurmCluster(arrays=True, nodes=2, launcher="srun")
    alone, here = SlurmCluster(arrays=False), LocalMachine()
    machines = {"a": small, "b": big, "c": small, "d": alone, "e": alone, "f": here, "g": big}
    jobs = [
        JobRecord(spec=spec_of("true", name=name, machine=machine))
        for name, machine in machines.items()
    ]
    jobs.append(JobRecord(spec=spec_of("true", name="h", machine=small, kind=Kind.EVALUATE)))
    found = names(arrays.groups(jobs, 10))
    assert sorted(found) == [["a", "c"], ["b", "g"], ["d"], ["e"], ["f"], ["h"]]


@pytest.mark.parametrize(("longest", "sizes"), [(1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (99, [7])])
def test_a_group_is_no_longer_than_slurm_takes_arrays(longest: int, sizes: list[int]) -> None:
    machine = SlurmCluster(arrays=True)
    jobs = [JobRecord(spec=spec_of("true", name=f"j{n}", machine=machine)) for n in range(7)]
    groups = arrays.groups(jobs, longest)
    assert [len(group) for group in groups] == sizes
    assert [job for group in groups for job in group] == jobs


def test_a_job_that_has_run_before_goes_alone(branches: Any) -> None:
    made = branches()
    made.session.begin_attempt(made.jobs[1])
    made.session.record_submission(made.jobs[1], made.jobs[1].attempts[0], "7")
    assert sorted(names(arrays.groups(made.jobs, 9))) == [
        ["tiny-cd100", "tiny-cd300"],
        ["tiny-cd200"],
    ]


# One submission


def test_an_array_is_one_submission_and_its_ids_name_the_tasks(branches: Any) -> None:
    made = branches()
    made.drive()
    assert (made.scheduler.calls, list(made.scheduler.jobs)) == (1, ["100_0", "100_1", "100_2"])
    again = Session.load(made.path)
    attempts = [again.jobs[f"tiny-cd{point}"].attempts[0] for point in POINTS]
    assert [a.job_id for a in attempts] == ["100_0", "100_1", "100_2"]
    assert {a.name for a in attempts} == {"s1-cooldown-array1"}
    assert [a.key for a in attempts] == [f"s1-tiny-cd{point}-a1" for point in POINTS]
    for job_id, attempt in zip(made.scheduler.jobs, attempts, strict=True):
        spec = made.scheduler.jobs[job_id].spec
        assert (spec["key"], spec["log"]) == (attempt.key, attempt.log)


def test_an_array_takes_no_more_than_the_room_in_the_queue(branches: Any) -> None:
    made = branches(max_jobs=2)
    made.drive()
    assert [len(job.open_attempts) for job in made.jobs] == [1, 1, 0]
    assert arrays.begin(made.session, made.jobs[2:]) == []
    made.jobs[0].attempts[0].state = "COMPLETED"
    (late,) = arrays.begin(made.session, made.jobs[2:])
    assert (late.attempts[0].name, late.attempts[0].array_index) == ("s1-cooldown-array2", 0)


def test_a_job_that_was_cancelled_in_the_meantime_joins_no_array(branches: Any) -> None:
    made = branches()
    (group,) = arrays.groups(made.jobs, 9)
    made.session.change_job(made.jobs[1], cancel_requested="ann")
    assert names([arrays.begin(made.session, group)]) == [["tiny-cd100", "tiny-cd300"]]
    assert made.jobs[1].attempts == []


def test_an_array_whose_intent_could_not_be_written_whole_is_begun_again_whole(
    branches: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = branches(max_jobs=3)
    (group,) = arrays.groups(made.jobs, 9)
    with monkeypatch.context() as patch:
        write = Session.save_job
        room = iter([True, True])

        def until_full(session: Session, job: JobRecord) -> None:
            if not next(room, False):
                raise OSError("no space left on device")
            write(session, job)

        patch.setattr(Session, "save_job", until_full)
        with pytest.raises(OSError):
            arrays.begin(made.session, group)
    assert len(arrays.begin(made.session, group)) == 3
    assert len({job.attempts[0].name for job in group}) == 1


@pytest.mark.parametrize("sbatch", [None, "outlives"])
def test_a_kill_at_any_step_ends_with_each_job_submitted_once(
    branches: Any, monkeypatch: pytest.MonkeyPatch, sbatch: str | None
) -> None:
    fate = Fate(monkeypatch)
    outcomes = set()
    for n in itertools.count(1):
        made = branches(str(n))
        made.scheduler.next_time = sbatch
        survived = fate.lets_live(made.drive, until=n)
        made.resume().drive()
        keys = {f"s1-tiny-cd{point}-a1": 1 for point in POINTS}
        assert made.scheduler.submissions == keys
        for job in made.resume().jobs:
            (attempt,) = job.attempts
            known = made.scheduler.jobs[str(attempt.job_id)]
            assert (known.spec["key"], known.name) == (attempt.key, attempt.name)
            assert str(attempt.job_id).endswith(f"_{attempt.array_index}")
        outcomes.add(made.scheduler.calls)
        if survived or n > 30:
            break
    assert n > 20
    assert outcomes == {1, 2}  # two arrays when it was killed while the intents were written


# What runs in a task


def test_each_task_runs_the_attempt_that_its_index_stands_for(
    branches: Any, no_survivors: None
) -> None:
    made = branches()
    for job in made.jobs:
        job.spec = job.spec.model_copy(update={"command": ("sh", "-c", f"echo {job.spec.name}")})
    made.drive()
    array = made.path / "attempts" / "s1-cooldown-array1"
    for index in (2, 0, 1):
        slurm = {"SLURM_ARRAY_JOB_ID": "100", "SLURM_ARRAY_TASK_ID": str(index)}
        done = subprocess.run(
            [sys.executable, str(array / "payload.py")],
            env={**os.environ, **slurm, "SLURM_JOB_ID": str(500 + index)},
            timeout=30,
        )
        assert done.returncode == 0
    for index, job in enumerate(made.jobs):
        attempt = job.attempts[0]
        assert Path(attempt.log).read_text() == f"{job.spec.name}\n"
        ended = json.loads((made.path / "attempts" / attempt.key / "exit.json").read_text())
        assert (ended["job_id"], ended["exit_code"]) == (attempt.job_id, 0)
        assert attempt.job_id == f"100_{index}"
