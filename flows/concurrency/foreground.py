"""The terminal that a flow runs for, as under `autoexp run`; a worker's flow has none."""

import asyncio
import time
from contextlib import suppress
from contextvars import ContextVar

from autoexp.flows.concurrency.updates import Updates


class Foreground:
    """Shared by a terminal's thread, which gets the signals, and the flow's thread."""

    def __init__(self) -> None:
        self.is_begun = False
        self.stopped_by: str | None = None
        self.visits: int | None = None
        """Where an embedded Prefect server says who looks at it."""
        self.taken_at = 0.0
        """When Prefect accepted something for the last time, by the monotonic clock."""
        self._stopped_at: float | None = None
        self._updates: Updates | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def stop(self, by: str) -> None:
        """Have the flow stop watching, at once or as soon as it begins; jobs keep running."""
        self.stopped_by, self._stopped_at = by, time.monotonic()
        if self._loop is not None and self._updates is not None:
            with suppress(RuntimeError):  # it has just ended
                self._loop.call_soon_threadsafe(self._updates.interrupt, by)

    def listen(self, updates: Updates) -> None:
        """Connect the flow: from now on it can be stopped."""
        self._updates, self._loop = updates, asyncio.get_running_loop()
        if self.stopped_by is not None:
            updates.interrupt(self.stopped_by)

    @property
    def over_at(self) -> float | None:
        """Monotonic time at which only the last messages to Prefect were left; None: not yet."""
        ended_at = self._updates.ended_at if self._updates is not None else None
        return ended_at if ended_at is not None else self._stopped_at


_foreground: ContextVar[Foreground | None] = ContextVar("foreground", default=None)


def enter_foreground(foreground: Foreground) -> None:
    """Mark this context as one where somebody at a terminal waits for the flow."""
    _foreground.set(foreground)


def foreground() -> Foreground | None:
    """The terminal that waits for this flow; None under a worker."""
    return _foreground.get()
