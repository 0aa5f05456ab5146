"""Arrays: jobs that start together are submitted together, and each of them exactly once."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from autoexp import payload
from autoexp.config.compose import Composed
from autoexp.jobs.record import JobRecord
from autoexp.monitor.steps import JobGroup, groups
from autoexp.operations import arrays
from autoexp.resources.machines import LocalMachine, SlurmCluster
from autoexp.schedulers.base import (
    find_or_forbid,
)
from autoexp.session.session import Session
from autoexp.states import Kind
from tests.builders import create, spec_of
from tests.fakes.scheduler import FakeScheduler, Fate


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


def names(groups: list[JobGroup]) -> list[list[str]]:
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
