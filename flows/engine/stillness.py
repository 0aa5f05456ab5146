"""Knows without a look that a look would find nothing: a stat for each file that the last one read.

A look takes ten times as long, most of all in a process that has slept, whose caches are cold.
"""

import time
from typing import NamedTuple

from autoexp.monitor.job_watch import Stamp, stamp
from autoexp.monitor.monitor import Monitor
from autoexp.session.session import Session

LONGEST_S = 30.0
"""The longest time without a look."""
ADDING_UP_S = 10.0
"""The same where there is a budget: a look adds up the hours of GPUs."""


class Rest(NamedTuple):
    """How long a monitor may rest."""

    files: tuple[str, ...]
    """While these stay as they are."""
    seconds: float


def rest_of(monitor: Monitor, session: Session) -> Rest:
    """What has to stay as it is, and for how long, for another look to find nothing.

    To be asked after a look and the choice of what follows from it.
    """
    every = session.experiment.monitoring.save_progress_every_s
    files: list[str] = []
    seconds = min(monitor.due_in_s(), ADDING_UP_S if _has_budget(monitor, session) else LONGEST_S)
    for job in session.jobs.values():
        watch = monitor.watches.get(job.spec.name)
        if watch is None or watch.log is None or job.is_over:
            continue
        seconds = min(seconds, watch.rest_s(monitor.recorder.book.watched(job.spec), every))
        files += watch.files(job.spec)
    return Rest(tuple(files), seconds)


def _has_budget(monitor: Monitor, session: Session) -> bool:
    rules = monitor.recorder.book.session_rules.values()
    stops = session.experiment.budget.stop_above is not None
    return stops or any(rule.gpu_hours_above is not None for rule in rules)


class Stillness:
    """What the last look has seen of its files, and whether that is still so."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._rest = Rest((), 0.0)
        self._stamps: list[Stamp] | None = None
        self._until = 0.0

    def begin_look(self) -> None:
        """Note the files as they are; what changes from here on calls for another look."""
        self._stamps = self._read()

    def end_look(self) -> None:
        """Note what the monitor needs from now on, once it has chosen what follows."""
        before, self._rest = self._rest, rest_of(self._monitor, self._monitor.recorder.session)
        if self._rest.files != before.files:
            self._stamps = None
        self._until = time.monotonic() + self._rest.seconds

    def forget(self) -> None:
        """Have the next look made whatever the files say: records may have changed."""
        self._stamps = None

    @property
    def holds(self) -> bool:
        """True if another look would find nothing."""
        return (
            self._stamps is not None
            and time.monotonic() < self._until
            and self._read() == self._stamps
        )

    def _read(self) -> list[Stamp] | None:
        """The stamps of the files; None where one cannot be had: the look itself says why."""
        try:
            return [stamp(path) for path in self._rest.files]
        except OSError:
            return None
