"""Load on Prefect: task runs, flow runs, events and API calls, for a cooldown and when idle."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

from prefect import get_client

from autoexp.flows.engine.session_run import SessionRun
from autoexp.jobs.record import JobRecord
from autoexp.resources.machines import SlurmCluster
from autoexp.schedulers.slurm.scheduler import SlurmScheduler
from bench.cases.reaction import fake_cluster, until, watch, with_cooldowns
from bench.cases.served import Relay
from bench.world import sessions
from bench.world.measure import Figure
from bench.world.slurm_commands import FakeCluster

_IDLE_S = 36.0
_POINTS = [400, 500, 600, 700, 800]


class Ledger:
    """What the server has, and what it was asked."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    async def read(self) -> Counter[str]:
        """Runs, events and calls so far."""
        found: Counter[str] = Counter()
        async with get_client() as client:
            http: Any = client._client
            for what in ("flow_runs", "task_runs"):
                found[what] = (await http.post(f"/{what}/count", json={})).json()
            events = (await http.post("/events/filter", json={"limit": 1})).json()
            found["events"] = events["total"]
        # What we have just asked ourselves is none of the session's.
        asked = self._relay.calls - Counter({"POST /api/events/filter": 10**9})
        found.update({f"call {name}": n for name, n in asked.items() if "/count" not in name})
        return found


def prefect(folder: Path, relay: Relay) -> list[Figure]:
    """Five cooldowns, one after the other; then a minute in which nothing happens."""
    path, cluster = fake_cluster(folder, 1, "slurm.scheduler_tick_s=1")
    with_cooldowns(path, _POINTS)
    ledger = Ledger(relay)
    cooldowns: list[Counter[str]] = []
    idle: list[Counter[str]] = []

    async def story(run: SessionRun) -> None:
        await until(lambda: len(run._cancellations._job_runs) >= 1, "the subflow")
        await asyncio.sleep(10)  # until the first publications are over
        before = await ledger.read()
        await asyncio.sleep(_IDLE_S)
        idle.append((await ledger.read()) - before)
        for point in _POINTS:
            cooldowns.append(await _cooldown(run, cluster, ledger, point))

    with cluster.on_path():
        watch(path, SlurmScheduler(SlurmCluster(scheduler_tick_s=1)), story)
    return [*_per_cooldown(cooldowns), *_per_idle_hour(idle[0])]


async def _cooldown(
    run: SessionRun, cluster: FakeCluster, ledger: Ledger, point: int
) -> Counter[str]:
    """Have a cooldown start and end; what that cost."""
    trunk, job = next(iter(run.session.jobs.values())), run.session.jobs[f"cd{point}"]
    before = await ledger.read()
    await asyncio.to_thread(sessions.save, Path(trunk.spec.save_dir), point)
    await until(lambda: job.attempts and job.attempts[0].job_id, "its submission")
    await until(lambda: job.spec.name in run._artifacts._bars, "its progress bar")
    cluster.shows([(trunk.attempts[0], "RUNNING"), *_ended(job)])
    await until(lambda: job.is_over, "its end")
    await asyncio.sleep(5)
    return (await ledger.read()) - before


def _ended(job: JobRecord) -> list[tuple[Any, str]]:
    sessions.save(Path(job.spec.save_dir), job.spec.target_iteration or 0)
    return [(job.attempts[0], "COMPLETED")]


def _calls(counts: Counter[str]) -> int:
    return sum(n for name, n in counts.items() if name.startswith("call "))


def _per_cooldown(counts: list[Counter[str]]) -> list[Figure]:
    figures = [
        Figure(f"a cooldown: {what.replace('_', ' ')}", "", [float(c[what]) for c in counts])
        for what in ("flow_runs", "task_runs", "events")
    ]
    total = Counter[str]()
    for each in counts:
        total += each
    busiest = ", ".join(
        f"{n / len(counts):.0f} {name.removeprefix('call ')}"
        for name, n in total.most_common()
        if name.startswith("call ")
    )
    calls = [float(_calls(each)) for each in counts]
    return [*figures, Figure("a cooldown: API calls", "", calls, note=busiest)]


def _per_idle_hour(counts: Counter[str]) -> list[Figure]:
    """Heartbeats aside, which Prefect's client sends by itself."""
    scale = 3600 / _IDLE_S
    beats = float(counts["events"]) * scale
    asked = ", ".join(
        f"{n * scale:.0f} {name.removeprefix('call ')}"
        for name, n in counts.most_common()
        if name.startswith("call ")
    )
    runs = float(counts["flow_runs"] + counts["task_runs"]) * scale
    return [
        Figure("an idle hour: flow runs and task runs", "", [runs], below=0),
        Figure("an idle hour: events", "", [beats], note="heartbeats of two flow runs"),
        Figure("an idle hour: API calls", "", [float(_calls(counts) * scale)], below=0, note=asked),
    ]
