"""Memory of a session flow's process, after many ticks with a thousand jobs."""

import asyncio
import gc
import tempfile
import tracemalloc
from pathlib import Path

from autoexp.flows.concurrency.children import Children
from autoexp.session.session import Session
from bench.cases import flow_tick, session_disk
from bench.world import sessions
from bench.world.measure import Figure, resident_mb

_TICKS = 1000
"""As many as show growth: what a tick keeps, fifty ticks show in Python's own memory."""
_JOBS = 1000
_EVENTS = 100_000


def memory() -> list[Figure]:
    """Resident memory with 1,000 jobs after 1,000 ticks, Prefect's import in it."""
    base = resident_mb()
    with (
        tempfile.TemporaryDirectory() as folder,
        flow_tick.watched(Path(folder), _JOBS) as (run, _),
    ):
        sizes, traced = asyncio.run(_ticks(run))
        with sessions.unsynced():
            before = resident_mb()
            session_disk.remember(run.session, _EVENTS)
            gc.collect()
            events = resident_mb() - before
    early, late = sizes[0], sizes[-1]
    return [
        Figure("Prefect and the engine imported, no session yet", "MB", [base]),
        Figure(f"{_JOBS} jobs, after {_TICKS:,} ticks", "MB", [late], below=250),
        Figure(f"growth from tick {_TICKS // 10:,} to {_TICKS:,}", "MB", [late - early], below=5),
        Figure("growth of Python's own memory in 50 ticks", "KB", traced, below=20),
        Figure(f"a journal of {_EVENTS:,} events", "MB", [events], below=50),
    ]


async def _ticks(run: flow_tick.Still) -> tuple[list[float], list[float]]:
    """Resident memory at each tenth of the ticks, and what Python allocated and kept later."""
    sizes, traced, last = [], [], 0.0
    async with Children(run.log) as children:
        await flow_tick.settle(run, children)
        for number in range(1, _TICKS + 1):
            if number % 100 == 0:
                _let_something_happen(run.session, number)
                flow_tick.mute(run)
            await run.tick(children)
            if number % (_TICKS // 10) == 0:
                gc.collect()
                sizes.append(resident_mb())
        tracemalloc.start()
        for number in range(6):
            for _ in range(50):
                await run.tick(children)
            gc.collect()
            held = tracemalloc.get_traced_memory()[0] / 1e3
            if number:
                traced.append(held - last)
            last = held
        tracemalloc.stop()
        flow_tick.end(run)
    return sizes, traced


def _let_something_happen(session: Session, number: int) -> None:
    """A job in ten has logged an iteration."""
    line = sessions.log_lines(5000 + number, 1)
    for place, job in enumerate(session.jobs.values()):
        if place % 10 == 0:
            with Path(job.attempts[0].log).open("ab") as log:
                log.write(line)
