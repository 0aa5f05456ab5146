"""The session on disk: bytes per event, and what a monitor reads that takes a session up again."""

import tempfile
import time
from functools import partial
from itertools import count
from pathlib import Path
from zlib import crc32

from autoexp.logs.tail import SEAM, LogCursor
from autoexp.monitor.monitor import Monitor
from autoexp.rules.events import StateChanged
from autoexp.schedulers.base import JobStatus
from autoexp.session.journal import Journal
from autoexp.session.session import Session
from bench.cases.core_tick import settled
from bench.world import sessions
from bench.world.measure import Figure, cpu_s, traffic, wall_s

_LOG_BYTES = 20_000_000


def session_io() -> list[Figure]:
    """Bytes written per event, however many jobs there are and whatever has happened before."""
    figures = []
    for jobs in (10, 1000):
        for events in (10, 100_000):
            with tempfile.TemporaryDirectory() as folder, sessions.unsynced():
                session = Session.load(sessions.build(Path(folder), jobs))
                remember(session, events)
                monitor = settled(session)
                where = f"{jobs} jobs, {events:,} events before"
                states = [float(change_state(session, monitor, n)) for n in range(6)]
                figures.append(Figure(f"{where}: change of a state", "B", states))
                saves = [float(complete_checkpoint(session, monitor, n)) for n in range(1, 7)]
                figures.append(Figure(f"{where}: checkpoint", "B", saves))
    return [_no_more_than(figure, figures[n % 2]) for n, figure in enumerate(figures)]


def _no_more_than(figure: Figure, first: Figure) -> Figure:
    """The first figure is the mark for the others; positions and times vary by some digits."""
    return figure if figure is first else figure._replace(below=first.median + 20)


def remember(session: Session, events: int) -> None:
    """Fill the journal with state changes of the session's jobs."""
    names = list(session.jobs)
    session.record(
        StateChanged(job=names[n % len(names)], attempt=0, position=n, old="PENDING", new="RUNNING")
        for n in range(events)
    )


def change_state(session: Session, monitor: Monitor, number: int) -> int:
    """Bytes that a new state of one job makes the monitor write."""
    job = list(session.jobs.values())[number % len(session.jobs)]
    answer = {job.attempts[-1].key: JobStatus("SUSPENDED")}
    return traffic(lambda: monitor.look(answer)).written


def complete_checkpoint(session: Session, monitor: Monitor, number: int) -> int:
    """Bytes that a checkpoint of one job makes the monitor write."""
    job = list(session.jobs.values())[number % len(session.jobs)]
    sessions.save(Path(job.spec.save_dir), 400)
    return traffic(lambda: monitor.look({})).written


def first_look() -> list[Figure]:
    """Resume with ten logs of 20 MB and their cursors on disk: new bytes only are read."""
    with tempfile.TemporaryDirectory() as folder:
        path = sessions.build(Path(folder), 10, lines=1)
        size = len(sessions.log_lines(0, 1000))
        lines = sessions.log_lines(1, 1000) * (_LOG_BYTES // size)
        with sessions.unsynced():
            session = Session.load(path)
            for job in session.jobs.values():
                log = Path(job.attempts[-1].log)
                log.write_bytes(lines)
                job.cursor = cursor_at_end(log)
                job.checkpoints = [100, 200, 300]
                session.save_job(job)
        read, took, loaded = [], [], []
        first_lines = count(2_000_000, 10)
        with sessions.unsynced():
            for _ in range(5):
                new = sessions.grow(session, next(first_lines), 3)
                loaded.append(wall_s(lambda: Session.load(path)) * 1e3)
                session = Session.load(path)
                monitor = Monitor(session)
                start = time.process_time()
                read.append(traffic(partial(monitor.look, {})).read / new)
                took.append((time.process_time() - start) * 1e3)
                monitor.flush()
    return [
        # The seam before the cursor, and the unfinished line of which the end has come, are
        # read again, the checkpoints' metadata too.
        Figure("bytes read per new byte", "", read, below=1.5),
        Figure("CPU of the first look", "ms", took),
        Figure("reading the session", "ms", loaded),
    ]


def cursor_at_end(log: Path) -> LogCursor:
    """The cursor of a log that has been read to its end."""
    status = log.stat()
    with log.open("rb") as file:
        file.seek(-SEAM, 2)
        seam = crc32(file.read())
    end = status.st_size
    return LogCursor(
        inode=status.st_ino,
        offset=end,
        scanned=end,
        seam=seam,
        size=end,
        mtime_ns=status.st_mtime_ns,
    )


def loading() -> list[Figure]:
    """Reading a session: what every command and every resume begins with."""
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        session = Session.load(sessions.build(Path(folder), 1000))
        path = session.path
        values = [cpu_s(lambda: Session.load(path)) / 1000 * 1e6 for _ in range(5)]
        figures.append(Figure("1,000 jobs: CPU per job", "µs", values))
        with sessions.unsynced():
            remember(session, 100_000)
        journal = [cpu_s(Journal(path / "events.jsonl").load) / 1e5 * 1e6 for _ in range(5)]
        figures.append(Figure("100,000 events: CPU per event", "µs", journal))
    return figures
