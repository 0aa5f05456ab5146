"""The session flow as it runs, on a fake cluster: how soon it reacts, and what can hold it up."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from prefect import flow, get_run_logger

from autoexp.backends.protocol import Branch
from autoexp.flows.engine.session_run import SessionRun
from autoexp.jobs.record import JobRecord
from autoexp.jobs.spec import JobSpec
from autoexp.resources.machines import SlurmCluster
from autoexp.schedulers.base import Scheduler
from autoexp.schedulers.registry import scheduler_for
from autoexp.schedulers.slurm.scheduler import SlurmScheduler
from autoexp.session.session import Session
from autoexp.states import Kind
from bench.world import sessions
from bench.world.measure import Figure
from bench.world.slurm_commands import FakeCluster

Story = Callable[[SessionRun], Awaitable[None]]
TICKS = (2.0, 0.5)
_BURSTS, _CROWD = 3, 50
_FIRST = 400
"""The first branch point: worlds.build has saved up to 300."""


def watch(path: Path, scheduler: Scheduler, story: Story) -> None:
    """Watch a session in a flow run of its own until the story is told."""

    @flow(name="bench")
    async def session_flow() -> None:
        with Session.hold(path) as (session, lease):
            run = SessionRun(session, lease, scheduler, get_run_logger())

            async def tell() -> None:
                try:
                    await story(run)
                finally:
                    run.updates.interrupt("measured")

            async with asyncio.TaskGroup() as group:
                group.create_task(tell())
                group.create_task(run.run())

    asyncio.run(session_flow())


def set_tick(run: SessionRun, seconds: float) -> None:
    """Look this often from now on."""
    experiment = run.session.meta.experiment
    monitoring = experiment.monitoring.model_copy(update={"file_tick_s": seconds})
    run.session.meta.experiment = experiment.model_copy(update={"monitoring": monitoring})


def with_cooldowns(path: Path, points: list[int]) -> None:
    """Plan cooldowns of the first job at these iterations."""
    session = Session.load(path)
    trunk = next(iter(session.jobs.values())).spec
    _plan(session, [_cooldown(trunk, point, f"cd{point}") for point in points])


def _plan(session: Session, specs: list[JobSpec]) -> None:
    with sessions.unsynced():
        for spec in specs:
            session.meta.jobs.append(spec.name)
            session.save_job(JobRecord(spec=spec))
        session.save_meta()


def _cooldown(trunk: JobSpec, point: int, name: str) -> JobSpec:
    output = Path(trunk.output_dir).parent / name
    branch = Branch(iteration=point, decay_iterations=100, shape="linear", min_lr=0.0)
    changes = {
        "name": name,
        "kind": Kind.COOLDOWN,
        "parent": trunk.name,
        "branch": branch,
        "output_dir": str(output),
        "save_dir": str(output / "checkpoints"),
        "target_iteration": point + 100,
    }
    return trunk.model_copy(update=changes)


async def until(condition: Callable[[], Any], what: str, *, seconds: float = 120) -> Any:
    """Wait until a condition holds, and return what it says."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited in vain for {what}")
        await asyncio.sleep(0.02)
    return answer


def fake_cluster(folder: Path, jobs: int, *overrides: str) -> tuple[Path, FakeCluster]:
    """A session of running jobs on SLURM, and the commands that say so."""
    (folder / "bin").mkdir(parents=True)
    cluster = FakeCluster(folder / "bin")
    path = sessions.build(folder / "sessions", jobs, "slurm=base", *overrides)
    session = Session.load(path)
    cluster.shows([(job.attempts[0], "RUNNING") for job in session.jobs.values()])
    return path, cluster


def reaction(folder: Path) -> list[Figure]:
    """With 1 and with 100 jobs, at the default tick and at half a second; and without SLURM."""
    figures = [figure for jobs in (1, 100) for figure in _reactions(folder / str(jobs), jobs)]
    return [*figures, _local(folder / "local")]


def _reactions(folder: Path, jobs: int) -> list[Figure]:
    path, cluster = fake_cluster(folder, jobs)
    points = [_FIRST + 100 * n for n in range(14)]
    with_cooldowns(path, points)
    found: list[list[float]] = []

    async def story(run: SessionRun) -> None:
        drawn = run._cancellations._job_runs
        await until(lambda: len(drawn) >= jobs, f"{jobs} subflows", seconds=200)
        for tick, mine in zip(TICKS, (points[:7], points[7:]), strict=True):
            set_tick(run, tick)
            await asyncio.sleep(2.5)
            shares = [(place + 0.5) / len(mine) for place in range(len(mine))]
            found.append(
                [
                    await _react(run, point, cluster, share)
                    for point, share in zip(mine, shares, strict=True)
                ]
            )

    with cluster.on_path():
        watch(path, SlurmScheduler(SlurmCluster()), story)
    return [
        Figure(
            f"{jobs} jobs, a look every {tick:g} s: checkpoint to sbatch",
            "s",
            values,
            below=tick / 2 + 0.2,
        )
        for tick, values in zip(TICKS, found, strict=True)
    ]


async def _between_looks(run: SessionRun, share: float) -> None:
    """Wait for the next look, and a share of the time to the one after it."""
    looked_at = run.vigil.looked_at
    await until(lambda: run.vigil.looked_at != looked_at, "the next look")
    await asyncio.sleep(share * run.session.experiment.monitoring.file_tick_s)


async def _react(run: SessionRun, point: int, cluster: FakeCluster, share: float) -> float:
    """Save a checkpoint at some share of the way between two looks; seconds until sbatch is called.

    All shares alike: a few moments by chance would make the median itself a matter of chance.
    """
    await _between_looks(run, share)
    trunk = next(iter(run.session.jobs.values()))
    await asyncio.to_thread(sessions.save, Path(trunk.spec.save_dir), point)
    saved = time.time()
    name = run.session.meta.key(f"cd{point}", 1)
    at = await until(lambda: cluster.submissions().get(name), f"sbatch of {name}")
    return float(at) - saved


def burst(folder: Path) -> list[Figure]:
    """With 100 jobs, while fifty cooldowns of another training start because of one checkpoint."""
    path, cluster = fake_cluster(folder, 100)
    points = [_FIRST + 100 * n for n in range(_BURSTS)]
    with_cooldowns(path, points)
    session = Session.load(path)
    other = session.jobs["run00001"].spec
    crowd = {point: [f"b{point}-{n}" for n in range(_CROWD)] for point in points}
    _plan(session, [_cooldown(other, point, name) for point in points for name in crowd[point]])
    one: list[float] = []
    last: list[float] = []

    def submitted(run: SessionRun, name: str) -> float | None:
        attempts = run.session.jobs[name].attempts
        return cluster.submissions().get(attempts[0].name) if attempts else None

    async def story(run: SessionRun) -> None:
        trunk = next(iter(run.session.jobs.values())).spec
        drawn = run._cancellations._job_runs
        await until(lambda: len(drawn) >= 100, "100 subflows", seconds=300)
        set_tick(run, 2.0)
        await asyncio.sleep(2.5)
        for place, point in enumerate(points):
            await _between_looks(run, 0.9)
            await asyncio.to_thread(sessions.save, Path(other.save_dir), point)
            saved = time.time()
            # The look after that has them all start; this one is saved on the way to the next.
            await _between_looks(run, (place + 0.5) / len(points))
            await asyncio.to_thread(sessions.save, Path(trunk.save_dir), point)
            mine = time.time()
            at = await until(partial(submitted, run, f"cd{point}"), f"sbatch of cd{point}")
            one.append(at - mine)
            found = [
                await until(partial(submitted, run, name), f"sbatch of {name}", seconds=300)
                for name in crowd[point]
            ]
            last.append(max(found) - saved)

    with cluster.on_path():
        watch(path, SlurmScheduler(SlurmCluster()), story)
    return [
        Figure(f"beside {_CROWD} that start: checkpoint to sbatch", "s", one, below=1.2),
        Figure(f"{_CROWD} at once: checkpoint to the last sbatch", "s", last),
    ]


def _local(folder: Path) -> Figure:
    """The same on this machine: until the job's own process runs."""
    path = sessions.build(folder, 1)
    points = [_FIRST + 100 * n for n in range(5)]
    with_cooldowns(path, points)
    values: list[float] = []

    async def story(run: SessionRun) -> None:
        trunk = next(iter(run.session.jobs.values()))
        set_tick(run, 2.0)
        await asyncio.sleep(1)
        for place, point in enumerate(points):
            await _between_looks(run, (place + 0.5) / len(points))
            await asyncio.to_thread(sessions.save, Path(trunk.spec.save_dir), point)
            saved = time.time()
            claim = path / "attempts" / run.session.meta.key(f"cd{point}", 1) / "claim"
            await until(claim.exists, f"the start of cd{point}")
            values.append(claim.stat().st_mtime - saved)
        for name, job in run.session.jobs.items():
            if name != trunk.spec.name and job.attempts:
                refs = [run.session.ref(attempt) for attempt in job.attempts]
                await asyncio.to_thread(scheduler.cancel, refs)

    scheduler = scheduler_for(Session.load(path).experiment)
    # The first job's process is made up: nobody is to ask after it.
    with mock.patch.object(type(scheduler), "query", lambda self, refs: {}):
        watch(path, scheduler, story)
    return Figure("1 job, on this machine, every 2 s: checkpoint to the job's process", "s", values)


def blocking(folder: Path) -> list[Figure]:
    """Twenty commands that sleep for five seconds, all because of one checkpoint."""
    action = json.dumps({"run_command": {"run": ["sleep", "5s"]}}).replace('"', "")
    rule = f"monitoring.checkpoint_events.slow.actions=[{','.join([action] * 20)}]"
    path, cluster = fake_cluster(folder, 10, rule, "slurm.scheduler_tick_s=1")
    gaps: dict[float, list[float]] = {tick: [] for tick in TICKS}
    calls: list[float] = []

    async def story(run: SessionRun) -> None:
        trunk = next(iter(run.session.jobs.values()))
        await until(lambda: len(run._cancellations._job_runs) >= 10, "10 subflows")
        point = _FIRST
        for tick in TICKS:
            set_tick(run, tick)
            await asyncio.sleep(2.5)  # the sleep that is under way is still a long one
            for _ in range(3):
                await asyncio.sleep(tick)
                run.vigil.longest_gap = 0.0
                cluster.taken_calls()
                await asyncio.to_thread(sessions.save, Path(trunk.spec.save_dir), point)
                began, point = time.monotonic(), point + 100
                await until(lambda: run.session.pending_actions(), "the actions")
                await until(lambda: not run.session.pending_actions(), "their end")
                gaps[tick].append(run.vigil.longest_gap / tick)
                calls.append(len(cluster.taken_calls()) / (time.monotonic() - began))

    with cluster.on_path():
        watch(path, SlurmScheduler(SlurmCluster(scheduler_tick_s=1)), story)
    return [
        *(
            Figure(f"a look every {tick:g} s: longest gap", "ticks", values, below=1.2)
            for tick, values in gaps.items()
        ),
        Figure("meanwhile: queries of the scheduler, which is asked every second", "/s", calls),
    ]
