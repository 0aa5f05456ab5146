"""Ticks: what one look at all jobs costs, when nothing happened and when every log has grown."""

import tempfile
from functools import partial
from pathlib import Path

from autoexp.monitor.monitor import Monitor
from autoexp.session.session import Session
from bench.world import sessions, yardstick
from bench.world.measure import Figure, cpu_s, traffic

_RULES = "monitoring=production"


def settled(session: Session) -> Monitor:
    """A monitor that has seen all there is to see."""
    monitor = Monitor(session)
    with sessions.unsynced():
        monitor.look({})
        sessions.age(session.path)
        # The new times of files are changes themselves, once; and one look reads a bounded part.
        for _ in range(2):
            while monitor.look({}).has_more:
                pass
        monitor.flush()
    return monitor


def idle() -> list[Figure]:
    """CPU of a look at N jobs when nothing is new, and what it writes."""
    figures = []
    for jobs in (1, 10, 100, 1000):
        with tempfile.TemporaryDirectory() as folder:
            session = Session.load(sessions.build(Path(folder), jobs, _RULES))
            monitor = settled(session)
            times = max(20, 2000 // jobs)

            def ticks(monitor: Monitor = monitor, times: int = times) -> None:
                for _ in range(times):
                    monitor.look({})

            logs = [job.attempts[0].log for job in session.jobs.values()]
            values, ratios = [], []
            for _ in range(7):
                taken = cpu_s(ticks) / times
                values.append(taken / jobs * 1e6)
                ratios.append(taken / yardstick.stats_s(logs))
            figures.append(Figure(f"{jobs} jobs: CPU per job", "µs", values))
            figures.append(Figure(f"{jobs} jobs: times as many stats", "", ratios))
            written = traffic(ticks).written
            figures.append(Figure(f"{jobs} jobs: bytes written", "B", [written], below=0))
    return figures


def busy() -> list[Figure]:
    """CPU of a look at 20 jobs with 100 new lines each, in small logs and in big ones."""
    figures = []
    for lines, title in ((200, "logs of 80 KB"), (25_000, "logs of 10 MB")):
        with tempfile.TemporaryDirectory() as folder:
            session = Session.load(sessions.build(Path(folder), 20, _RULES, lines=lines))
            monitor = settled(session)
            values = []
            with sessions.unsynced():
                for repeat in range(5):
                    size = sessions.grow(session, lines + 100 * repeat, 100)
                    values.append(cpu_s(partial(monitor.look, {})) / size * 1e9)
        figures.append(Figure(f"{title}: CPU per new byte", "ns", values))
    small, big = figures
    # As fast in big logs as in small ones, within what such a measurement varies by.
    return [small, big._replace(below=1.25 * small.median)]
