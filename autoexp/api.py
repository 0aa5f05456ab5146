"""autoexp from Python: compose, plan and run experiments, and read sessions.

All of it is at hand as `autoexp.compose`, `autoexp.run` and so on; docs/python.md describes it.
"""

import getpass
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from autoexp.config.compose import Composed
from autoexp.errors import AutoexpError, BadInput
from autoexp.flows.engine.compose import compose_words
from autoexp.operations.cancel import cancel_directly
from autoexp.planning.approval import above_budget
from autoexp.planning.plan import Plan
from autoexp.planning.study import subset
from autoexp.reports import results
from autoexp.reports.curves import read_curve
from autoexp.reports.status import JobSummary, Status, status_of
from autoexp.session import find
from autoexp.session.create import create, id_for, plan_of
from autoexp.session.inbox import CancelRequest, enqueue
from autoexp.session.journal import Entry, Journal
from autoexp.session.measured_speed import with_measured_speed
from autoexp.session.provenance import provenance
from autoexp.session.session import Session, no_such_job
from autoexp.storage import atomic
from autoexp.storage.places import sessions_root

Frame = Literal["pandas", "polars", "columns"]
Columns = dict[str, list[Any]]

_KEY = re.compile(r"[A-Za-z_][\w./-]*")
_POLL_S = 0.5
_END = 2000  # bytes of a monitor's log that are shown
_COLUMNS = ("job", "iteration", "loss", "learning_rate")


def compose(
    config: str | None = None,
    *overrides: str,
    values: Mapping[str, Any] | None = None,
    points: str | None = None,
    start: str | None = None,
) -> Composed:
    """Compose and validate an experiment, as `autoexp plan CONFIG OVERRIDE …` does.

    ``values`` are overrides by dotted key, as plain values; ``points`` some points of a sweep, such
    as `"3,5-7"`; ``start`` a session to start from (`--from`). Raises BadInput.
    """
    words = [] if config is None else [config]
    words += overrides
    words += [f"{key}={_written(value)}" for key, value in (values or {}).items()]
    return with_measured_speed(subset(compose_words(words, start), points))


def plan(composed: Composed) -> Plan:
    """The jobs that would be submitted, with their commands; submits nothing. Raises BadInput."""
    return plan_of(composed)


def run(composed: Composed, *, session: str | None = None, confirmed: bool = False) -> "Handle":
    """Create a session, and start a monitor for it in a process of its own.

    The monitor outlives this process, and the jobs outlive the monitor. Raises BadInput, also for a
    plan above `budget.confirm_above` that is not ``confirmed``.
    """
    name = session or id_for(composed)
    found = plan_of(composed, name)
    question = above_budget(composed, found)
    if question is not None and not confirmed:
        raise BadInput(f"{question}; `confirmed=True` agrees to it, or raise the budget")
    path = create(composed, found, sessions_root(), session_id=name, provenance=provenance())
    handle = Handle(path)
    handle.resume()
    return handle


def open_session(name: str | Path | None = None) -> "Handle":
    """A session by its id or directory, the newest by default; raises SessionNotFound."""
    return Handle(find.session_path(None if name is None else str(name)))


def sessions() -> list[str]:
    """The ids of all sessions that can be read, the newest last."""
    return [path.name for path in find.session_paths()]


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
                raise no_such_job(self.id, [name], list(session.jobs))
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
            raise no_such_job(self.id, unknown, list(session.jobs))
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
                    f"{self.id}: no monitor is running; `resume()` starts one{self._said()}"
                )
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"{self.id}: not over after {timeout_s:g} s")
            time.sleep(_POLL_S)

    def _is_watched(self, session: Session) -> bool:
        starting = self._monitor is not None and self._monitor.poll() is None
        return starting or find.live_holder(session) is not None

    def _said(self) -> str:
        """The end of the log of a monitor that this process has started."""
        if self._monitor is None:
            return ""
        text = atomic.read(self.path / "monitor.log")[-_END:].decode(errors="replace")
        return f". The last one said:\n{text}"

    def _load(self) -> Session:
        session = Session.load(self.path, self._journal)
        self._journal = session.journal
        return session


def _written(value: Any) -> str:
    """A plain value as an override has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # Hydra's quotes: a backslash is one, but in front of a quote, at the end, and of `${`.
        kept = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + (m[2] and f"\\{m[2]}"), value)
        return "'" + re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + "\\${", kept) + "'"
    if isinstance(value, Mapping):
        for key in value:
            if not _KEY.fullmatch(str(key)):
                raise BadInput(f"values: the key {key!r} cannot be written in an override")
        inside = (f"{key}: {_written(inner)}" for key, inner in value.items())
        return f"{{{', '.join(inside)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_written, value))}]"
    return str(value)


def _framed(columns: Columns, frame: Frame | None) -> Any:
    chosen: str = frame or next(filter(importlib.util.find_spec, ("pandas", "polars")), "columns")
    return columns if chosen == "columns" else importlib.import_module(chosen).DataFrame(columns)
