"""The session's thread between two looks that the loop has to know of.

It sleeps and looks by itself, and comes back once something is found, somebody wants the thread, or
it is time for what the loop alone can do: each way to the loop and back costs more than a look.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

from autoexp.flows.concurrency.children import Updates
from autoexp.flows.engine.stillness import Stillness
from autoexp.monitor.job_watch import are_calm
from autoexp.monitor.monitor import Look, Monitor
from autoexp.monitor.worklist import JobView, Work
from autoexp.schedulers.base import AttemptRef
from autoexp.session.inbox import has_requests
from autoexp.session.session import Session
from autoexp.storage.lease import Lease

# However quiet it is: a process that ends waits for its threads.
_LONGEST_S = 60.0


class Found(NamedTuple):
    """The results of a tick on the session's thread."""

    look: Look
    work: Work
    notes: list[str]
    refs: list[AttemptRef] | None
    """Attempts to ask the scheduler about; None: it is not time."""
    is_calm: bool
    """True if the scheduler would only say what the logs show."""


class Limits(NamedTuple):
    """Until when the thread may stay by itself; times by the monotonic clock."""

    may_look: bool
    """False: the next look is the loop's, which has something to bring to it."""
    until: float
    numbers_at: float
    """From when on the loop has to know of jobs whose numbers have moved."""
    poll_at: Callable[[bool], float]
    """When the scheduler is to be asked, by whether the jobs are calm."""


class Vigil:
    """Looks again and again, for as long as nobody else has to know."""

    def __init__(
        self,
        session: Session,
        monitor: Monitor,
        updates: Updates,
        lease: Lease,
        look: Callable[[], Found],
    ) -> None:
        self.next_at = 0.0
        """When the next look is due, by the monotonic clock."""
        self.longest_gap = 0.0
        """The longest time between two looks: nothing may ever block them."""
        self.looked_at: float | None = None
        self._session = session
        self._monitor = monitor
        self._updates = updates
        self._lease = lease
        self._look = look
        self._stillness = Stillness(monitor)
        self._changed: set[str] = set()
        self._views: dict[str, JobView] = {}
        self._busy_since: float | None = None

    def take_changed(self) -> set[str]:
        """Jobs whose numbers have moved unnoticed by the loop since the last call."""
        changed, self._changed = self._changed, set()
        return changed

    def busy_s(self) -> float:
        """For how long it has been at work without a sleep."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def note_look(self) -> None:
        """Note that somebody looks now."""
        now = time.monotonic()
        if self.looked_at is not None:
            self.longest_gap = max(self.longest_gap, now - self.looked_at)
        self.looked_at = now

    def stand(self, limits: Limits) -> Found | None:
        """Look at each tick, until something is found; None: woken up, or the loop has to look."""
        # Others may have changed records since the last look.
        self._stillness.forget()
        self._views.clear()
        until = min(limits.until, time.monotonic() + _LONGEST_S)
        is_calm = self._is_calm()
        try:
            while not self._updates.sleep(max(0.0, self.next_at - time.monotonic())):
                self._busy_since = now = time.monotonic()
                is_wanted = now >= limits.poll_at(is_calm) or (
                    bool(self._changed) and now >= limits.numbers_at
                )
                if not limits.may_look or is_wanted or now >= until:
                    return None
                if self._has_news():
                    found = self._look_at_all()
                    if self._matters(found):
                        return found
                    is_calm = self._is_calm()
                self.next_at = time.monotonic() + self._session.experiment.monitoring.file_tick_s
                self._busy_since = None
            return None
        finally:
            self._busy_since = None

    def _is_calm(self) -> bool:
        return are_calm(self._session.jobs.values(), self._monitor.watches)

    def _has_news(self) -> bool:
        self.note_look()
        self._lease.beat()
        return not self._stillness.holds or has_requests(self._session.path)

    def _look_at_all(self) -> Found:
        self._stillness.begin_look()
        found = self._look()
        self._stillness.end_look()
        self._changed |= found.look.changed
        return found

    def _matters(self, found: Found) -> bool:
        """True if the loop has something to do, or to say."""
        look, work = found.look, found.work
        views = {view.spec.name: view for view in work.jobs}
        is_new = any(self._views.get(name) != view for name, view in views.items())
        self._views |= views
        return bool(
            is_new
            or (look.events or look.warnings or look.has_more or found.notes)
            or (work.steps or work.actions or work.has_conditions or work.is_over)
        )
