"""Background coroutines of the loop; signals between it, them and the session's thread."""

import asyncio
import logging
import threading
import time
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


class Children:
    """Coroutines that the loop starts and never awaits; the block ends when all of them have.

    An exception in one is logged, and ends no other.
    """

    def __init__(self, log: "logging.Logger | logging.LoggerAdapter[Any]") -> None:
        self._log = log
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._group.__aexit__(kind, error, trace)

    def spawn(self, name: str, coroutine: Coroutine[Any, Any, object]) -> "asyncio.Task[None]":
        """Start a child; what it raises is logged with `name`, unless it is a cancellation."""
        return self._group.create_task(self._contain(name, coroutine))

    async def _contain(self, name: str, coroutine: Coroutine[Any, Any, object]) -> None:
        try:
            await coroutine
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # Prefect's own signals are no Exceptions
            self._log.error("%s: %s: %s", name, type(error).__name__, error, exc_info=error)


class Updates:
    """Signals that records have changed, that watching stops, and that it has ended."""

    def __init__(self) -> None:
        self._changed = False
        self._woken = threading.Event()
        self._interruption = asyncio.Event()
        self.interrupted: str | None = None
        self.ended_at: float | None = None
        """When the loop looked for the last time, by the monotonic clock."""

    @property
    def is_over(self) -> bool:
        """True if the loop looks no more: it was interrupted, or the session has ended."""
        return self.interrupted is not None or self.ended_at is not None

    def interrupt(self, by: str) -> None:
        """Stop watching; jobs keep running."""
        self.interrupted = by
        self._interruption.set()
        self.mark_changed()

    def end(self) -> None:
        """Note that the loop has looked for the last time."""
        self.ended_at = time.monotonic()

    def mark_changed(self) -> None:
        """Signal that records have changed: there may be something to do at once."""
        self._changed = True
        self.wake()

    def take_changed(self) -> bool:
        """True if records have changed since the last call."""
        changed, self._changed = self._changed, False
        self._woken.clear()
        return changed

    def wake(self) -> None:
        """Wake up the session's thread: something has changed, or somebody wants it."""
        self._woken.set()

    def sleep(self, seconds: float) -> bool:
        """Sleep on the session's thread; True if it was woken up."""
        return self._woken.wait(seconds)

    async def pause(self, seconds: float) -> None:
        """Sleep, but wake up at once when the session is interrupted."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._interruption.wait()

    async def unless_interrupted(self, work: Coroutine[Any, Any, T]) -> T:
        """Await slow work; an interruption ends it as a cancellation of the caller.

        Whoever resumes the session does it again.
        """
        task = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self._interruption.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
        if task.done():
            return task.result()
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task
        raise asyncio.CancelledError
