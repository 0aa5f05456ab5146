"""How the loop tells those who wait beside it that it has looked again, or that it stops."""

import asyncio
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


class News:
    """A bulletin after every look."""

    def __init__(self) -> None:
        self._published = asyncio.Condition()
        self._last = False
        self._interruption = asyncio.Event()
        self.interrupted: str | None = None
        self.ended_at: float | None = None
        """When the loop looked for the last time, by the monotonic clock."""

    def interrupt(self, by: str) -> None:
        """Say that nobody watches any more; jobs keep running."""
        self.interrupted = by
        self._interruption.set()

    async def publish(self, *, last: bool = False) -> None:
        """Wake up everybody who waits for the next look."""
        async with self._published:
            if last:
                self._last, self.ended_at = True, time.monotonic()
            self._published.notify_all()

    async def next(self) -> None:
        """Wait until the loop has looked again; after the last look, do not wait."""
        async with self._published:
            if not self._last:
                await self._published.wait()

    async def pause(self, seconds: float) -> None:
        """Sleep, but wake up at once when the session is interrupted."""
        try:
            await asyncio.wait_for(self._interruption.wait(), seconds)
        except TimeoutError:
            pass

    async def unless_interrupted(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something that may take long; an interruption ends it as a cancellation of the caller.

        Whoever resumes does it again.
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
