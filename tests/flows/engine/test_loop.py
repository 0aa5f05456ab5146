"""The loop: nothing that runs beside it ever blocks it."""

import asyncio
import errno
import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from prefect import flow

from autoexp.backends.demo import DemoBackend
from autoexp.backends.protocol import FoundCheckpoint
from autoexp.flows.concurrency.children import Updates
from autoexp.flows.concurrency.writer import SessionWriter
from autoexp.flows.engine.session_run import SessionRun
from autoexp.monitor.monitor import Look, Monitor
from autoexp.schedulers.base import JobStatus
from autoexp.schedulers.registry import scheduler_for
from autoexp.session.session import Session
from tests.flows.sessions import Make

pytestmark = pytest.mark.prefect


@flow
async def watched(path: Path) -> None:
    with Session.hold(path) as (session, lease):
        run = SessionRun(session, lease, scheduler_for(session.experiment), logging.getLogger())
        await run.run()


async def test_the_parent_keeps_looking_while_cooldowns_run_and_an_action_sleeps(
    make_session: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed, look = DemoBackend.seed, Monitor.look
    looks, seen = 0, list[bool]()

    def slow_seed(self: DemoBackend, checkpoint: FoundCheckpoint, save_dir: Path) -> None:
        if checkpoint.iteration == 50:
            # Held up until the parent has looked ten times more; in vain, if it waits for this.
            until, deadline = looks + 10, time.monotonic() + 120
            while looks < until and time.monotonic() < deadline:
                time.sleep(0.05)
            seen.append(looks >= until)
        seed(self, checkpoint, save_dir)

    def counted(self: Monitor, statuses: Mapping[str, JobStatus]) -> Look:
        nonlocal looks
        looks += 1
        return look(self, statuses)

    monkeypatch.setattr(DemoBackend, "seed", slow_seed)
    monkeypatch.setattr(Monitor, "look", counted)
    path = make_session(
        "cooldowns=[{at: [50, 100, 150, 200], decay: {iterations: 100}}]",
        "monitoring.file_tick_s=0.5",
    )

    await watched(path)

    session = Session.load(path)
    assert [job.verdict for job in session.jobs.values()] == ["finished"] * 5
    assert seen == [True]


async def test_an_interruption_ends_the_waiting_for_a_full_disk() -> None:
    updates = Updates()
    disk = SessionWriter(Path("s1"), updates, logging.getLogger())
    tried, loop = asyncio.Event(), asyncio.get_running_loop()

    def write() -> None:
        loop.call_soon_threadsafe(tried.set)
        raise OSError(errno.ENOSPC, "No space left on device")

    writing = asyncio.create_task(disk.persist(write))
    await tried.wait()
    updates.interrupt("SIGINT")
    # As a cancellation: the session ends, and no error of its own hides why.
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(writing, timeout=300)
    disk.close()


async def test_a_filesystem_that_hangs_is_told_once_and_so_is_its_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("autoexp.flows.concurrency.writer._PATIENCE_S", 0.05)
    answers, loop = threading.Event(), asyncio.get_running_loop()
    loop.call_later(0.5, answers.set)
    disk = SessionWriter(Path("/scratch/s1"), Updates(), logging.getLogger("hanging"))

    await asyncio.gather(*(disk.run(answers.wait) for _ in range(3)))
    await disk.run(str)
    disk.close()

    hangs, back = caplog.messages
    assert "/scratch/s1: the filesystem has not answered" in hangs
    assert "/scratch/s1: the filesystem answers again" in back


async def test_a_filesystem_that_answers_those_in_front_of_a_call_does_not_hang() -> None:
    gates = [threading.Event() for _ in range(2)]
    disk = SessionWriter(Path("/scratch/s1"), Updates(), logging.getLogger("queued"))
    first, second = (asyncio.create_task(disk.run(gate.wait)) for gate in gates)
    await asyncio.sleep(0)
    begun = disk._timer
    assert begun is not None
    gates[0].set()
    await first
    anew = disk._timer
    assert begun.cancelled() and anew is not None and anew.when() > begun.when()
    gates[1].set()
    await second
    assert anew.cancelled() and disk._timer is None
    disk.close()
