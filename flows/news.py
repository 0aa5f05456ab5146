"""How the loop tells those who wait beside it that it has looked again, or that it stops."""

import asyncio
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


# Waiting for nothing costs a thousand jobs some milliseconds; a bulletin missed would cost a job.
_LONGEST_SILENCE_S = 30.0


class News:
    """A bulletin after every look that found something, or beside which something was done."""

    def __init__(self) -> None:
        self._next = asyncio.Event()
        self._last = False
        self._stirred = True
        self._published_at = 0.0
        self.number = 0
        """Of the bulletin; what is worked out from the records may be kept until the next one."""
        self._interruption = asyncio.Event()
        self.interrupted: str | None = None
        self.ended_at: float | None = None
        """When the loop looked for the last time, by the monotonic clock."""

    def interrupt(self, by: str) -> None:
        """Say that nobody watches any more; jobs keep running."""
        self.interrupted = by
        self._interruption.set()

    def stir(self) -> None:
        """Say that something was done of which those who wait should know after the next look."""
        self._stirred = True

    @property
    def is_due(self) -> bool:
        """Whether there is something to publish though the look itself found nothing."""
        return self._stirred or time.monotonic() - self._published_at > _LONGEST_SILENCE_S

    def publish(self, *, last: bool = False) -> None:
        """Wake up everybody who waits for news."""
        if last:
            self._last, self.ended_at = True, time.monotonic()
        self.number += 1
        self._stirred, self._published_at = False, time.monotonic()
        waiting, self._next = self._next, asyncio.Event()
        waiting.set()

    async def next(self) -> None:
        """Wait until a look or somebody beside it has changed something; not after the last one."""
        if not self._last:
            await self._next.wait()

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
