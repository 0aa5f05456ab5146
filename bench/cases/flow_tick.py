"""The session flow's own tick, outside of a flow run: everything that happens when nothing does."""

import asyncio
import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from autoexp.flows.concurrency.children import Children
from autoexp.flows.engine.session_run import SessionRun
from autoexp.flows.engine.stillness import LONGEST_S
from autoexp.resources.machines import SlurmCluster
from autoexp.schedulers.base import Scheduler
from autoexp.schedulers.slurm.scheduler import SlurmScheduler
from autoexp.session.session import Session
from autoexp.storage.lease import Lease
from bench.world import sessions, yardstick
from bench.world.measure import Figure, Traffic, cpu_s
from bench.world.slurm_commands import FakeCluster

_MARK_US = 15.0
_TIMES_STATS = 3.0
"""The mark of a tick: this many times the least that a stat of each job's log takes in Python."""


class Still(SessionRun):
    """A session being watched without Prefect: its jobs have subflows already, and bars."""

    def __init__(self, session: Session, lease: Lease, scheduler: Scheduler) -> None:
        super().__init__(session, lease, scheduler, logging.getLogger("bench"))
        self._subflows._started = {(name, job.retries) for name, job in session.jobs.items()}


@contextmanager
def watched(folder: Path, jobs: int, *overrides: str) -> Iterator[tuple[Still, FakeCluster]]:
    """A session of running jobs on a fake cluster, and its flow's loop."""
    (folder / "bin").mkdir()
    cluster = FakeCluster(folder / "bin")
    words = ("slurm.scheduler_tick_s=15", *(overrides or ("monitoring=production",)))
    path = sessions.build(folder / "sessions", jobs, *words)
    with Session.hold(path) as (session, lease), cluster.on_path():
        cluster.shows([(job.attempts[0], "RUNNING") for job in session.jobs.values()])
        yield Still(session, lease, SlurmScheduler(SlurmCluster())), cluster


def engine() -> list[Figure]:
    """CPU of one whole tick of the session flow with N idle jobs, its waiting coroutines too."""
    figures, scale = [], yardstick.scale()
    for jobs in (1, 10, 100, 1000):
        with tempfile.TemporaryDirectory() as folder, watched(Path(folder), jobs) as (run, _):
            logs = [job.attempts[0].log for job in run.session.jobs.values()]
            per_tick, written, at_rest = asyncio.run(_idle_ticks(run, logs))
            ratios = [cpu / yardstick.stats_s(logs) for cpu in per_tick]
        values = [cpu / jobs * 1e6 for cpu in per_tick]
        mark = _MARK_US if jobs >= 100 else None
        note = (
            "" if mark else "the way to the session's thread and back, whatever the number of jobs"
        )
        figures.append(
            Figure(f"{jobs} jobs: CPU per job", "µs", values, mark, note=note, scale=scale)
        )
        mark = _TIMES_STATS if jobs == 1000 else None
        figures.append(Figure(f"{jobs} jobs: times as many stats", "", ratios))
        what = f"{jobs} jobs: a tick at rest, times as many stats"
        figures.append(Figure(what, "", at_rest.ticks, below=mark))
        what = f"{what}, the look of every {LONGEST_S:.0f} s spread over ticks"
        figures.append(Figure(what, "", at_rest.with_looks))
        figures.append(Figure(f"{jobs} jobs: bytes written", "B", [written], below=0))
    return figures


def mute(run: Still) -> None:
    """Let Prefect's artifacts be as they are."""
    run._artifacts._publishing = True


async def settle(run: Still, children: Children) -> None:
    """Read everything that is pending, without publishing it, so that later ticks are idle."""
    mute(run)
    with sessions.unsynced():
        await run.tick(children)
        sessions.age(run.session.path)
        for _ in range(3):
            await run.tick(children)
            await asyncio.sleep(0.3)
        await run._flush()
    run._artifacts._publishing = False
    run._artifacts._dirty = run._artifacts._urgent = False


def end(run: Still) -> None:
    """Stop the background coroutines."""
    run.updates.interrupt("measured")
    run._subflows.stop()


class AtRest(NamedTuple):
    """CPU of ticks that the session's thread does by itself, in stats of each log."""

    ticks: list[float]
    with_looks: list[float]


def _at_rest(run: Still, logs: list[str]) -> AtRest:
    ticks, with_looks, vigil = [], [], run.vigil
    for_look = LONGEST_S / run.session.experiment.monitoring.file_tick_s
    for _ in range(7):
        vigil._look_at_all()
        look = cpu_s(vigil._look_at_all)
        if vigil._has_news():
            raise RuntimeError("there is news, where nothing has changed")
        tick = cpu_s(lambda: [vigil._has_news() for _ in range(20)]) / 20
        stats = yardstick.stats_s(logs)
        ticks.append(tick / stats)
        with_looks.append((tick * (for_look - 1) + look) / for_look / stats)
    return AtRest(ticks, with_looks)


async def _idle_ticks(run: Still, logs: list[str]) -> tuple[list[float], float, AtRest]:
    """Seconds of CPU per tick, bytes written in all of them, and what a tick at rest takes."""
    values = []
    async with Children(run.log) as children:
        await settle(run, children)
        start = Traffic.now()
        for _ in range(7):
            began = time.process_time()
            for _ in range(20):
                await run.tick(children)
            values.append((time.process_time() - began) / 20)
        written = Traffic.now().written - start.written
        at_rest = _at_rest(run, logs)
        end(run)
    return values, float(written), at_rest
