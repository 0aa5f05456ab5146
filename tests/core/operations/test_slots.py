"""GPU slots of a pool: taken before a submission, kept, given back, neither lost nor doubled."""

import logging
from pathlib import Path
from typing import Any

import pytest

from autoexp.config.compose import Composed, compose
from autoexp.errors import BadInput
from autoexp.jobs.summary import activity_of, summary_of
from autoexp.operations import phases
from autoexp.operations.slots import holding
from autoexp.planning.study import plan_study
from autoexp.resources.machines import SlurmCluster
from autoexp.session.inbox import CancelRequest, enqueue
from autoexp.session.session import Session
from autoexp.states import Activity
from tests.builders import TINY, create_launched
from tests.core.monitor.driver import LOG, Driver
from tests.fakes.pools import FakePool
from tests.fakes.scheduler import FakeScheduler, Fate

GPUS = 4


class Crowd:
    """A session of cooldowns that are launched at once, each with four GPUs of one pool."""

    def __init__(
        self, root: Path, composed: Composed, pool: FakePool, *, name: str = "s1", **machine: Any
    ) -> None:
        cooldown = composed.experiment.cooldowns[0].model_copy(update={"at": (100, 200)})
        slurm = SlurmCluster(gpus_per_node=GPUS, budget_pool="group", **machine)
        changes = {"slurm": slurm, "cooldowns": (cooldown,)}
        changed = composed._replace(experiment=composed.experiment.model_copy(update=changes))
        self.path = create_launched(changed, root, session_id=name)
        self.pool, self.scheduler = pool, FakeScheduler()
        self.resume()

    @property
    def session(self) -> Session:
        return self.driver.session

    @property
    def waiting(self) -> list[str]:
        return [job.waits_for_slots for job in self.session.jobs.values() if job.waits_for_slots]

    @property
    def held(self) -> dict[str, str]:
        return {name: job.slots.lease for name, job in self.session.jobs.items() if job.slots}

    def resume(self) -> None:
        """Begin to watch, in the place of whoever watched before."""
        self.driver = Driver(self.path, self.scheduler)
        self.driver.monitor.worklist.pool = self.pool

    def rounds(self, count: int = 3) -> None:
        for _ in range(count):
            self.driver.round()

    def end(self, state: str = "CANCELLED") -> None:
        """End what is in the queue."""
        for job_id in self.scheduler.alive:
            self.scheduler.jobs[job_id].state = state

    def keep(self) -> None:
        phases.run(holding.keep(self.driver.monitor, LOG), self.scheduler)


@pytest.fixture
def fate(monkeypatch: pytest.MonkeyPatch) -> Fate:
    return Fate(monkeypatch)


def test_a_job_takes_as_many_slots_as_it_has_gpus_and_gives_them_back_when_it_has_ended(
    tmp_path: Path, composed: Composed, fate: Fate
) -> None:
    crowd = Crowd(tmp_path, composed, FakePool(64))

    crowd.rounds()

    assert (len(crowd.scheduler.alive), crowd.pool.used) == (2, 2 * GPUS)
    assert set(crowd.held.values()) == set(crowd.pool.leases)
    crowd.end("FAILED")
    crowd.rounds()
    assert {job.verdict for job in crowd.session.jobs.values()} <= {"finished", "failed", None}
    ended = [job for job in crowd.session.jobs.values() if job.is_over]
    assert crowd.pool.used == GPUS * (3 - len(ended)) and len(crowd.held) == 3 - len(ended)


def test_a_job_waits_for_slots_and_says_for_which(
    tmp_path: Path, composed: Composed, fate: Fate
) -> None:
    crowd = Crowd(tmp_path, composed, FakePool(GPUS + 2))

    crowd.rounds()

    assert (len(crowd.scheduler.alive), crowd.pool.used) == (1, GPUS)
    assert crowd.waiting == ["waits for 4 GPUs of pool group (4 of 6 in use)"]
    (job,) = [job for job in crowd.session.jobs.values() if job.waits_for_slots]
    assert summary_of(job).reason == crowd.waiting[0]
    assert (activity_of(job), job.attempts) == (Activity.WAITING, [])
    enqueue(crowd.path, CancelRequest(jobs=tuple(crowd.held), by="ann"))
    crowd.rounds(4)
    assert (crowd.waiting, list(crowd.held)) == ([], [job.spec.name])
    assert crowd.pool.used == GPUS and len(crowd.scheduler.submissions) == 2


def test_a_crowd_that_waits_asks_once_a_tick_and_who_wants_less_does_not_wait_behind_it(
    tmp_path: Path, composed: Composed, fate: Fate
) -> None:
    pool = FakePool(GPUS)
    crowd = Crowd(tmp_path, composed, pool)
    other = Crowd(tmp_path, composed, pool, name="s2")
    crowd.rounds()
    other.rounds()
    before = len(pool.calls)

    for _ in range(5):
        other.driver.round()

    assert pool.calls[before:] == ["take"] * 5
    assert other.waiting == ["waits for 4 GPUs of pool group (4 of 4 in use)"] * 2


def test_a_plan_says_which_pool_its_jobs_need_and_a_name_that_prefect_refuses_is_refused() -> None:
    words = ["slurm.gpus_per_node=4", "slurm.budget_pool=group"]

    plan = plan_study(compose("demo", [*TINY, *words]), Path("/out"))

    note = "each job takes 4 GPUs of the pool group, which sessions share, and waits while"
    assert [each for each in plan.notes if each.startswith(note)]
    with pytest.raises(BadInput, match="budget_pool"):
        compose("demo", [*TINY, "slurm.budget_pool=a/b"])


def test_a_job_above_the_pool_says_that_it_can_never_be_submitted(
    tmp_path: Path, composed: Composed, fate: Fate
) -> None:
    crowd = Crowd(tmp_path, composed, FakePool(2))

    crowd.rounds()

    assert crowd.scheduler.alive == []
    assert set(crowd.waiting) == {
        "waits for 4 GPUs of pool group, which has 2: it can never be submitted"
    }


def test_without_a_server_jobs_are_submitted_as_ever_and_take_their_slots_once_it_answers(
    tmp_path: Path, composed: Composed, fate: Fate, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    crowd = Crowd(tmp_path, composed, FakePool(64))
    crowd.pool.is_away = True

    crowd.rounds()

    assert (len(crowd.scheduler.alive), crowd.held) == (2, {})
    assert [line for line in caplog.messages if "pool group" in line] == [
        "pool group: no server answers; jobs are submitted without its slots, and take them once "
        "it answers"
    ]
    crowd.pool.is_away = False
    crowd.keep()
    crowd.keep()
    assert crowd.pool.used == 2 * GPUS and set(crowd.held.values()) == set(crowd.pool.leases)
    assert "pool group is counted again" in caplog.messages
    crowd.pool.is_away = True
    enqueue(crowd.path, CancelRequest(by="ann"))
    crowd.rounds(4)
    assert crowd.session.is_over and crowd.held == {}


def test_whoever_resumes_keeps_the_slots_and_takes_anew_only_those_that_were_lost(
    tmp_path: Path, composed: Composed, fate: Fate
) -> None:
    crowd = Crowd(tmp_path, composed, FakePool(64))
    crowd.rounds()
    first, second = crowd.held.values()
    crowd.pool.end(first)

    crowd.resume()
    crowd.keep()

    assert len(crowd.pool.leases) == 2 and second in crowd.pool.leases
    assert set(crowd.held.values()) == set(crowd.pool.leases)
    crowd.rounds()
    assert crowd.pool.used == 2 * GPUS and sum(crowd.scheduler.submissions.values()) == 2


def test_slots_that_went_to_others_meanwhile_are_told_and_no_job_is_touched(
    tmp_path: Path, composed: Composed, fate: Fate, caplog: pytest.LogCaptureFixture
) -> None:
    pool = FakePool(2 * GPUS)
    crowd = Crowd(tmp_path, composed, pool)
    crowd.rounds()
    for lease in list(pool.leases):
        pool.end(lease)
    other = Crowd(tmp_path, composed, pool, name="s2")
    other.rounds()

    crowd.resume()
    crowd.keep()
    crowd.rounds()

    assert len(crowd.scheduler.alive) == 2 and crowd.held == {}
    told = [line for line in caplog.messages if "went to others while nobody kept them" in line]
    assert len(told) == 2
    other.end()
    enqueue(other.path, CancelRequest(by="ann"))
    other.rounds(4)
    crowd.keep()
    assert pool.used == 2 * GPUS and set(crowd.held.values()) == set(pool.leases)


@pytest.mark.parametrize("step", range(1, 26))
def test_a_kill_at_any_step_neither_doubles_a_submission_nor_the_slots_of_a_job(
    tmp_path: Path, composed: Composed, fate: Fate, step: int
) -> None:
    crowd = Crowd(tmp_path, composed, FakePool(64))
    fate.steps_left = step

    is_spared = fate.spares(crowd.rounds)
    fate.steps_left = 0
    crowd.resume()
    crowd.keep()
    crowd.rounds()

    assert set(crowd.scheduler.submissions.values()) == {1}
    assert len(crowd.scheduler.submissions) == 2
    # What nobody knows of ends with its lease; what is known is held, once for each job.
    known = set(crowd.held.values())
    assert len(known) == 2 and known <= set(crowd.pool.leases)
    assert len(crowd.pool.leases) - len(known) <= (0 if is_spared else 2)
    enqueue(crowd.path, CancelRequest(by="ann"))
    crowd.rounds(5)
    assert crowd.session.is_over and crowd.held == {}
    assert known.isdisjoint(crowd.pool.leases)


@pytest.mark.parametrize("call", ["take", "renew", "give_back"])
def test_a_kill_right_after_a_call_leaves_no_slots_that_do_not_end_by_themselves(
    tmp_path: Path, composed: Composed, fate: Fate, call: str
) -> None:
    crowd = Crowd(tmp_path, composed, FakePool(64))
    if call != "take":
        crowd.rounds()
        crowd.end("FAILED") if call == "give_back" else None
    crowd.pool.dies_after = call

    def act() -> None:
        crowd.keep() if call == "renew" else crowd.rounds(8)

    assert not fate.spares(act)
    crowd.resume()
    crowd.keep()
    crowd.rounds()

    known = set(crowd.held.values())
    assert known <= set(crowd.pool.leases)
    assert len(set(crowd.pool.leases) - known) <= (1 if call == "take" else 0)
    assert max(crowd.scheduler.submissions.values()) == 1


def test_jobs_of_a_pool_are_no_tasks_of_an_array(
    tmp_path: Path, composed: Composed, fate: Fate
) -> None:
    crowd = Crowd(tmp_path, composed, FakePool(GPUS), arrays=True)

    crowd.rounds()

    assert [job for job in crowd.scheduler.jobs if "_" in job] == []
    assert (len(crowd.scheduler.alive), crowd.pool.used) == (1, GPUS)


def test_a_job_of_no_pool_asks_nobody(tmp_path: Path, composed: Composed, fate: Fate) -> None:
    pool = FakePool(0)
    crowd = Crowd(tmp_path, composed, pool)
    for job in crowd.session.jobs.values():
        machine = job.spec.machine.model_copy(update={"gpus_per_node": 0})
        job.spec = job.spec.model_copy(update={"machine": machine})

    crowd.rounds()
    crowd.keep()

    assert (pool.calls, len(crowd.scheduler.alive)) == ([], 2)
