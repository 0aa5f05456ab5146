"""A session from Python: read from its directory, watched, cancelled."""

import getpass
import importlib
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

from autoexp.errors import AutoexpError
from autoexp.operations.cancel import cancel_directly
from autoexp.reports import results
from autoexp.reports.curves import read_curve
from autoexp.reports.status import JobSummary, Status, status_of
from autoexp.session import find
from autoexp.session.inbox import CancelRequest, enqueue
from autoexp.session.journal import Entry, Journal
from autoexp.session.session import Session
from autoexp.storage import atomic

Frame = Literal["pandas", "polars", "columns"]
Columns = dict[str, list[Any]]

_POLL_S = 0.5
_END = 2000  # bytes of a monitor's log that are shown
_COLUMNS = ("job", "iteration", "loss", "learning_rate")


class Handle:
    """A session, read from its directory each time that it is asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._journal: Journal | None = None
        self._monitor: subprocess.Popen[bytes] | None = None
        self._load()

    def __repr__(self) -> str:
        return f"<autoexp session {self.id}: {self.status.state}>"

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def status(self) -> Status:
        """What `autoexp status --json` prints, as an object."""
        return status_of(self._load())

    @property
    def jobs(self) -> dict[str, JobSummary]:
        """State, progress, loss, scores and GPU hours of each job, by name."""
        return {job.name: job for job in self.status.jobs}

    @property
    def is_over(self) -> bool:
        """True if every job has finished or failed for good."""
        return self._load().is_over

    def metrics(self, *jobs: str, frame: Frame | None = None) -> Any:
        """Losses (nats per token) and learning rates by job and iteration.

        A frame of pandas or polars, whichever is installed, else lists by column.
        """
        session = self._load()
        columns: Columns = {name: [] for name in _COLUMNS}
        for name in jobs or tuple(session.jobs):
            if name not in session.jobs:
                raise find.no_such_job(self.id, [name], list(session.jobs))
            curve = read_curve(self.path, name)
            columns["job"] += [name] * len(curve.iterations)
            columns["iteration"] += curve.iterations
            columns["loss"] += curve.losses
            columns["learning_rate"] += curve.learning_rates
        return _framed(columns, frame)

    def results(self, *, frame: Frame | None = None) -> Any:
        """A row for each job, with the columns of `autoexp export`."""
        rows = results.rows([self._load()])
        return _framed(
            {name: [row[name] for row in rows] for name in rows[0]} if rows else {}, frame
        )

    def events(self) -> list[Entry]:
        """What happened, in order: pairs of a time and an event."""
        return self._load().journal.entries

    def report(self, path: str | Path) -> Path:
        """Write the session as one web page, as `autoexp report` does."""
        from autoexp.reports.html.page import page

        target = Path(path).absolute()
        atomic.write(target, page(self._load()), by_umask=True)
        return target

    def resume(self) -> None:
        """Start a monitor in a process of its own; raises SessionHeld where there is one."""
        path = find.own_session_path(str(self.path))
        find.refuse_if_held(self._load())
        log = path / "monitor.log"
        atomic.append(log, b"")  # made as all of a session is
        with log.open("ab") as output:
            self._monitor = subprocess.Popen(
                [sys.executable, "-m", "autoexp", "resume", self.id],
                env={**os.environ, "AUTOEXP_SESSIONS": str(path.parent)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def cancel(self, *jobs: str) -> None:
        """Cancel jobs, all by default; a live monitor is asked, and `wait` sees them end."""
        session = self._load()
        if unknown := [job for job in jobs if job not in session.jobs]:
            raise find.no_such_job(self.id, unknown, list(session.jobs))
        path = find.own_session_path(str(self.path))
        by = f"autoexp from Python by {getpass.getuser()}"
        if self._is_watched(session):
            enqueue(path, CancelRequest(jobs=jobs, by=by))
            return
        outcome = cancel_directly(path, jobs, by)
        if outcome.problem is not None:
            raise AutoexpError(f"{self.id}: not ended yet: {outcome.problem}; call it again later")

    def wait(self, timeout_s: float | None = None) -> Status:
        """Wait until all jobs are over; returns the status.

        Raises TimeoutError, or AutoexpError when nobody watches the session.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            # Before the session: a monitor that ends has written all.
            watched = self._is_watched(self._load())
            session = self._load()
            if session.is_over:
                return status_of(session)
            if not watched:
                raise AutoexpError(
                    f"{self.id}: no monitor is running; `resume()` starts one{self._last_words()}"
                )
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"{self.id}: not over after {timeout_s:g} s")
            time.sleep(_POLL_S)

    def _is_watched(self, session: Session) -> bool:
        starting = self._monitor is not None and self._monitor.poll() is None
        return starting or find.live_holder(session) is not None

    def _last_words(self) -> str:
        """The end of the log of a monitor that this process has started."""
        if self._monitor is None:
            return ""
        text = atomic.read(self.path / "monitor.log")[-_END:].decode(errors="replace")
        return f". The last one said:\n{text}"

    def _load(self) -> Session:
        session = Session.load(self.path, self._journal)
        self._journal = session.journal
        return session


def _framed(columns: Columns, frame: Frame | None) -> Any:
    chosen: str = frame or next(filter(importlib.util.find_spec, ("pandas", "polars")), "columns")
    return columns if chosen == "columns" else importlib.import_module(chosen).DataFrame(columns)
