"""Arrays above the limit on a user's jobs: they go in parts that fit, and each job goes once."""

from pathlib import Path

import pytest

from autoexp.config.compose import Composed
from autoexp.monitor.steps import NextStep, Submit, Withdraw
from autoexp.resources.machines import SlurmCluster
from tests.builders import create_launched
from tests.core.monitor.driver import Driver
from tests.fakes.scheduler import FakeScheduler, Fate

POINTS = tuple(range(60, 140, 10))


class Branches:
    """A session of eight cooldowns that are launched at once, and a user who may have few jobs."""

    def __init__(self, root: Path, composed: Composed, most: int) -> None:
        cooldown = composed.experiment.cooldowns[0].model_copy(update={"at": POINTS})
        backend = composed.experiment.backend
        args = backend.args.model_copy(update={"save_interval": 10})  # type: ignore[union-attr]
        changes = {
            "slurm": SlurmCluster(arrays=True),
            "cooldowns": (cooldown,),
            "backend": backend.model_copy(update={"args": args}),
        }
        changed = composed._replace(experiment=composed.experiment.model_copy(update=changes))
        self.path = create_launched(changed, root, session_id="s1")
        self.scheduler = FakeScheduler()
        self.scheduler.most = most
        self.driver = Driver(self.path, self.scheduler)

    def rounds(self, count: int) -> None:
        for _ in range(count):
            self.driver.round()

    def rounds_until_all_went(self) -> None:
        for _ in range(60):
            self.driver.round()
            for job_id in self.scheduler.alive:
                self.scheduler.jobs[job_id].state = "CANCELLED"
            if len(self.scheduler.submissions) == len(POINTS):
                return
        raise AssertionError(f"still postponed: {self.scheduler.submissions}")


@pytest.mark.parametrize("most", [1, 3, 5, 7])
def test_an_array_above_the_submit_limit_goes_in_parts_and_each_job_once(
    tmp_path: Path, composed: Composed, most: int
) -> None:
    made = Branches(tmp_path, composed, most)
    made.rounds_until_all_went()
    assert set(made.scheduler.submissions.values()) == {1}
    for job in made.driver.session.jobs.values():
        for attempt in job.attempts:
            known = made.scheduler.jobs[str(attempt.job_id)]
            assert (known.name, known.spec["key"]) == (attempt.name, attempt.key)
            assert str(known.log) == attempt.log


def test_while_jobs_of_the_session_are_in_the_queue_an_array_waits_for_them(
    tmp_path: Path, composed: Composed
) -> None:
    made = Branches(tmp_path, composed, 5)
    made.rounds(12)
    assert len(made.scheduler.alive) == 4
    names = {job.attempts[0].name for job in made.driver.session.jobs.values() if job.attempts}
    assert len(names) == 2  # the other half waits as one


def test_where_nothing_fits_one_array_alone_is_split_so_that_few_are_asked_about(
    tmp_path: Path, composed: Composed
) -> None:
    made = Branches(tmp_path, composed, 0)
    made.rounds(12)
    names = {job.attempts[0].name for job in made.driver.session.jobs.values() if job.attempts}
    assert len(names) == 4  # of 4, 2, 1 and 1
    assert made.scheduler.submissions == {}
    made.scheduler.most = 100
    made.rounds(4)
    assert set(made.scheduler.submissions.values()) == {1}
    assert len(made.scheduler.submissions) == len(POINTS)


def test_a_kill_at_any_step_of_splitting_loses_and_doubles_nothing(
    tmp_path: Path, composed: Composed, monkeypatch: pytest.MonkeyPatch
) -> None:
    fate = Fate(monkeypatch)
    for step in range(1, 200, 7):
        made = Branches(tmp_path / str(step), composed, 3)
        fate.steps_left = step
        if not fate.spares(lambda made=made: made.rounds(3)):  # type: ignore[misc]
            made.driver = Driver(made.path, made.scheduler)
        fate.steps_left = 0
        made.rounds_until_all_went()
        assert set(made.scheduler.submissions.values()) == {1}


def steps_once_due(made: Branches) -> list[NextStep]:
    """The first steps that are handed out from now on, by a clock that goes in small pieces."""
    worklist = made.driver.monitor.worklist
    for _ in range(1000):
        made.driver.seconds += 0.1
        if steps := worklist.next_work().steps:
            return steps
    raise AssertionError("nothing is due")


def refused_array(root: Path, composed: Composed) -> tuple[Branches, Submit]:
    """All eight in one array, which has been refused for now."""
    made = Branches(root, composed, 1)
    made.scheduler.full = True
    made.driver.round()
    return made, Submit(tuple(made.driver.session.meta.jobs[1:]), as_array=True)


def test_an_array_that_was_refused_is_retried_whole(tmp_path: Path, composed: Composed) -> None:
    made, whole = refused_array(tmp_path, composed)
    assert steps_once_due(made) == [whole]


def test_an_array_waits_for_the_one_of_it_that_is_withdrawn(
    tmp_path: Path, composed: Composed
) -> None:
    made, whole = refused_array(tmp_path, composed)
    second = made.driver.session.jobs[whole.jobs[1]]
    made.driver.session.change_job(second, cancel_requested="by ann")
    (withdrawal,) = steps_once_due(made)
    assert withdrawal == Withdraw((second.spec.name,))
    with pytest.raises(AssertionError, match="nothing is due"):
        steps_once_due(made)
    made.driver.monitor.worklist.end_step(withdrawal)
    assert Submit((whole.jobs[0], *whole.jobs[2:]), as_array=True) in steps_once_due(made)


def test_the_others_of_an_array_are_not_forgotten_while_one_is_withdrawn(
    tmp_path: Path, composed: Composed
) -> None:
    made, whole = refused_array(tmp_path, composed)
    second = made.driver.session.jobs[whole.jobs[1]]
    made.driver.session.change_job(second, cancel_requested="by ann")
    (withdrawal,) = steps_once_due(made)
    worklist = made.driver.monitor.worklist
    worklist._failures.clear()  # as in a monitor that has just resumed the session
    worklist.consider(whole.jobs)
    assert worklist.next_work().steps == []
    # What was withdrawn names no array any longer.
    made.driver.session.refuse(second, second.attempts[-1], "withdrawn")
    worklist.end_step(withdrawal)
    rest = Submit((whole.jobs[0], *whole.jobs[2:]), as_array=True)
    assert rest in steps_once_due(made)
