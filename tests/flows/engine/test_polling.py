"""The scheduler is asked as often as it knows better than the logs, on a clock of our own."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from autoexp.flows.concurrency.children import Children
from autoexp.flows.engine import poller
from autoexp.monitor import job_watch
from autoexp.monitor.monitor import Monitor
from autoexp.schedulers.base import AttemptRef, JobStatus
from autoexp.session.session import Session
from bench.cases import core_tick
from bench.world import sessions

TICK_S = 15.0
HOUR = 3600


class Counting:
    """A scheduler that counts its queries, and has nothing to say."""

    def __init__(self) -> None:
        self.asked_at: list[float] = []

    def query(self, refs: Sequence[AttemptRef]) -> dict[str, JobStatus]:
        self.asked_at.append(job_watch.time.monotonic())
        return {}


class Day:
    """A session that is looked at every five seconds, on a clock that nobody waits for."""

    def __init__(self, session: Session, monitor: Monitor, seconds: list[float]) -> None:
        self.session = session
        self.monitor = monitor
        self.seconds = seconds
        self.scheduler = Counting()
        self.log = logging.getLogger("polling")
        self.poller = poller.SchedulerPoller(self.scheduler, TICK_S, self.log)  # type: ignore[arg-type]
        self.iteration = 10_000

    async def goes_on(self, seconds: int, grows: Callable[[int], bool]) -> list[float]:
        """When the scheduler was asked, while logs grow at the seconds that are chosen."""
        begun, before = self.seconds[0], len(self.scheduler.asked_at)
        for second in range(0, seconds, 5):
            self.seconds[0] = begun + second
            if grows(second):
                sessions.grow(self.session, self.iteration, 1)
                self.iteration += 1
            self.monitor.look({})
            if self.poller.is_due:
                async with Children(self.log) as children:
                    is_calm = job_watch.are_calm(self.session.jobs.values(), self.monitor.watches)
                    self.poller.poll(children, self.monitor.refs(), is_calm=is_calm)
        return [at - begun for at in self.scheduler.asked_at[before:]]


@pytest.fixture
def day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Day:
    async def here(function: Any, *arguments: Any) -> Any:
        return function(*arguments)

    session = Session.load(sessions.build(tmp_path, 2, lines=5))
    for job in session.jobs.values():
        job.spec = job.spec.model_copy(update={"target_iteration": 10_000_000})
    monitor = core_tick.settled(session)
    seconds = [1e6]
    monkeypatch.setattr(asyncio, "to_thread", here)
    monkeypatch.setattr(job_watch.time, "monotonic", lambda: seconds[0])
    return Day(session, monitor, seconds)


def every(seconds: int) -> Callable[[int], bool]:
    return lambda second: second % seconds == 0


async def test_jobs_whose_logs_move_are_asked_about_every_five_minutes(day: Day) -> None:
    asked = await day.goes_on(HOUR, every(10))
    assert len([at for at in asked if at < 120]) == 8  # until they are known to run
    gaps = [b - a for a, b in pairwise(asked) if a >= 120]
    assert gaps and min(gaps) >= 300 and max(gaps) <= 315


async def test_a_log_that_falls_silent_has_the_scheduler_asked_within_a_minute(day: Day) -> None:
    await day.goes_on(HOUR, every(10))
    asked = await day.goes_on(600, lambda second: False)
    assert asked[0] <= job_watch.SILENCE_S + TICK_S
    assert len(asked) >= (600 - asked[0]) // TICK_S


@pytest.mark.parametrize("what", ["pending", "cancelled", "near its end", "silent"])
async def test_one_job_that_is_not_just_running_is_asked_about_at_every_tick(
    what: str, day: Day
) -> None:
    job = next(iter(day.session.jobs.values()))
    match what:
        case "pending":
            job.attempts[0].state = "PENDING"
        case "cancelled":
            job.cancel_requested = "somebody"
        case "near its end":
            job.spec = job.spec.model_copy(update={"target_iteration": day.iteration})
        case _:
            Path(job.attempts[0].log).rename(f"{job.attempts[0].log}.away")
    asked = await day.goes_on(HOUR, every(60) if what == "silent" else every(10))
    assert len(asked) == HOUR // TICK_S
