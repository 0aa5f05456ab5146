"""Who goes first when much is to be done at once."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import Mock, patch

import pytest

from autoexp.flows.concurrency.children import Children, Updates
from autoexp.flows.concurrency.outbox import Outage, PrefectOutbox
from autoexp.flows.concurrency.turns import Precedence, Turns
from autoexp.flows.concurrency.writer import SessionWriter
from autoexp.flows.engine.phase_runner import JobRun, JobRuns, PhaseRunner
from autoexp.flows.engine.subflows import Subflows
from autoexp.jobs.record import JobRecord
from autoexp.monitor.worklist import JobView
from autoexp.operations.phases import OnSession, Phases
from autoexp.schedulers.base import Scheduler
from autoexp.tasks import effects
from tests.builders import spec_of

LOG = logging.getLogger("turns")
FOR_EVER = 3600.0


async def test_a_crowd_of_one_training_lets_another_one_in_between() -> None:
    turns, order = Turns(2, FOR_EVER), list[str]()

    async def work(group: str, name: str) -> None:
        async with turns.turn(group):
            order.append(name)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(work("crowd", f"crowd-{number}"))
        group.create_task(work("other", "other"))
    assert len(order) == 21
    assert order.index("other") <= 3  # two have begun, and one of the crowd waited before it


async def test_what_takes_long_keeps_nobody_waiting() -> None:
    turns, done = Turns(1, 0.0), asyncio.Event()

    async def hang() -> None:
        async with turns.turn("a"):
            await done.wait()

    async with asyncio.TaskGroup() as group:
        group.create_task(hang())
        await asyncio.sleep(0)
        async with turns.turn("a"), turns.turn("b"):  # while the first one still hangs
            done.set()
    assert turns._free == 1


async def test_who_is_cancelled_while_it_waits_takes_no_turn() -> None:
    turns = Turns(1, FOR_EVER)

    async def wait() -> None:
        async with turns.turn("b"):
            pass

    async with turns.turn("a"):
        waiting = [asyncio.create_task(wait()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
    waiting[1].cancel()  # when its turn has come, and it has not begun
    await asyncio.gather(*waiting, return_exceptions=True)
    assert [task.cancelled() for task in waiting] == [True, True, False]
    assert turns._free == 1


async def test_what_shows_work_waits_while_work_is_done() -> None:
    precedence, order = Precedence(), list[str]()

    async def show() -> None:
        await precedence.yield_to_work(time.monotonic())
        order.append("show")

    precedence.note_work()
    async with asyncio.TaskGroup() as group:
        group.create_task(show())
        for _ in range(100):
            precedence.note_work()
            order.append("work")
            await asyncio.sleep(0)
    assert order == ["work"] * 100 + ["show"]


async def test_what_has_waited_for_long_is_shown_beside_work_one_at_a_time() -> None:
    precedence, order = Precedence(), list[str]()

    async def show() -> None:
        precedence.note_work()
        await precedence.yield_to_work(time.monotonic() - FOR_EVER)
        order.append("show")

    task = asyncio.create_task(show())
    await asyncio.sleep(0)
    order.append("work")  # it has left the loop to others once
    await task
    assert order == ["work", "show"]


async def test_runs_that_give_way_to_work_before_they_begin_hold_up_the_end_of_no_other() -> None:
    precedence, updates = Precedence(), Updates()
    outbox = PrefectOutbox(updates, LOG)
    job, unused = JobView.of(JobRecord(spec=spec_of("train"))), Mock()
    run, begun = JobRun(), list[bool]()

    async def begin(*_: object) -> None:
        begun.append(outbox.write_lock.locked())

    subflows = Subflows(updates, outbox, unused, unused, {}, JobRuns(), precedence, unused)
    with patch.object(subflows, "_run_subflow", begin):
        precedence.note_work()
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(subflows._run(job, run))
            for _ in range(100):
                precedence.note_work()
                await asyncio.sleep(0)
                assert not outbox.write_lock.locked()
    assert begun == [True] * 3


class Copy(NamedTuple):
    """An effect that ends well, or does not."""

    fails: bool = False
    title: str = "copy"
    job: None = None

    def run(self, scheduler: Scheduler) -> str:
        del scheduler
        if self.fails:
            raise OSError("no room")
        return "copied"


class Shown:
    """Stands for a Prefect task that shows an effect, and begins only once it is let."""

    def __init__(self) -> None:
        self.let = asyncio.Event()
        self.outcomes: list[str] = []

    async def __call__(
        self, title: str, outcome: Callable[[], Awaitable[Any]], *, return_state: bool
    ) -> str:
        assert return_state
        await self.let.wait()
        try:
            self.outcomes.append(f"{title}: {await outcome()}")
        except OSError as error:
            self.outcomes.append(f"{title}: {error}")
        return "state"


def copying(found: list[str], fails: bool) -> Phases:
    """Copy, and write down what came of it."""
    try:
        answer = yield Copy(fails)
    except OSError as error:
        answer = f"failed: {error}"
    yield OnSession(lambda: found.append(answer))


@pytest.mark.parametrize("fails", [False, True])
async def test_what_jobs_wait_for_waits_for_no_task_run(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, found, updates = Shown(), list[str](), Updates()
    monkeypatch.setitem(effects.SHOWN, Copy, shown)
    writer = SessionWriter(tmp_path, updates, LOG)
    scheduler: Any = None
    runner = PhaseRunner(scheduler, writer, updates, Precedence(), Outage(LOG), JobRuns())
    async with Children(LOG) as children:
        await runner.run(children, copying(found, fails))
        assert found == ["failed: no room" if fails else "copied"]
        assert not shown.outcomes
        shown.let.set()
    assert shown.outcomes == ["copy: no room" if fails else "copy: copied"]
    writer.close()
