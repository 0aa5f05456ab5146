"""Load on the scheduler: commands per tick, independent of the number of jobs."""

import shutil
import subprocess
import tempfile
from pathlib import Path

from autoexp.jobs.record import Attempt
from autoexp.monitor.monitor import Monitor
from autoexp.resources.machines import SlurmCluster
from autoexp.schedulers.slurm.scheduler import SlurmScheduler
from autoexp.session.session import Session
from bench.world import sessions
from bench.world.measure import Figure, cpu_s, wall_s
from bench.world.slurm_commands import FakeCluster


class Ticks:
    """A session on a fake cluster, asked as the session flow asks it."""

    def __init__(self, folder: Path, jobs: int) -> None:
        (folder / "bin").mkdir()
        self.cluster = FakeCluster(folder / "bin")
        self.session = Session.load(sessions.build(folder / "sessions", jobs, lines=1, saves=1))
        self.monitor = Monitor(self.session)
        self.scheduler = SlurmScheduler(SlurmCluster())

    @property
    def attempts(self) -> list[Attempt]:
        return [job.attempts[0] for job in self.session.jobs.values()]

    def tick(self) -> int:
        """Ask and look once; returns how many commands were run."""
        self.cluster.taken_calls()
        refs = self.monitor.refs()
        with self.cluster.on_path():
            statuses = self.scheduler.query(refs) if refs else {}
        with sessions.unsynced():
            self.monitor.look(statuses)
        return len(self.cluster.taken_calls())


def scheduler() -> list[Figure]:
    """Commands per tick with 1, 100 and 1,000 jobs: while they run, end, fail and have ended."""
    figures = []
    for jobs in (1, 100, 1000):
        with tempfile.TemporaryDirectory() as folder:
            ticks = Ticks(Path(folder), jobs)
            figures += _figures(ticks, f"{jobs} jobs")
    return figures + _real()


def _figures(ticks: Ticks, title: str) -> list[Figure]:
    attempts = ticks.attempts
    tenth = max(1, len(attempts) // 10)
    ended, others = attempts[:tenth], attempts[tenth:]
    running = [(attempt, "RUNNING") for attempt in others]

    ticks.cluster.shows([(attempt, "RUNNING") for attempt in attempts])
    while_running = [float(ticks.tick()) for _ in range(5)]
    with ticks.cluster.on_path():
        refs = ticks.monitor.refs()
        cpu = [cpu_s(lambda: ticks.scheduler.query(refs)) * 1e3 for _ in range(5)]
    ticks.cluster.shows([*((attempt, "COMPLETED") for attempt in ended), *running])
    as_they_end = [float(ticks.tick())]
    ticks.cluster.shows(running)
    afterwards = [float(ticks.tick()) for _ in range(5)]
    figures = [
        Figure(f"{title}, all running: commands per tick", "", while_running, below=1),
        Figure(f"{title}, as some end: commands in that tick", "", as_they_end, below=1),
        Figure(f"{title}, some have ended: commands per tick", "", afterwards, below=1),
        Figure(f"{title}: CPU of asking and reading", "ms", cpu),
    ]
    if len(others) > 10:
        ticks.cluster.shows(running[5:])
        ticks.cluster.accounts([(attempt, "COMPLETED") for attempt, _ in running[:5]])
        vanished = [float(ticks.tick())]
        what = f"{title}, five left the queue unseen: commands in that tick"
        figures.append(Figure(what, "", vanished, note="squeue, and one sacct for all that left"))
    return figures


def _real() -> list[Figure]:
    """Seconds of one query of the cluster at hand, if there is one."""
    if shutil.which("squeue") is None:
        return []
    if subprocess.run(["squeue", "-h"], capture_output=True).returncode != 0:
        return []
    scheduler = SlurmScheduler(SlurmCluster())
    values = [wall_s(lambda: scheduler.query([])) * 1e3 for _ in range(5)]
    return [Figure("the cluster at hand: one query", "ms", values)]
