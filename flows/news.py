"""How the loop tells those who wait beside it that it has looked again, or that it stops."""

import asyncio


class News:
    """A bulletin after every look."""

    def __init__(self) -> None:
        self._published = asyncio.Condition()
        self._last = False
        self._interruption = asyncio.Event()
        self.interrupted: str | None = None

    def interrupt(self, by: str) -> None:
        """Say that nobody watches any more; jobs keep running."""
        self.interrupted = by
        self._interruption.set()

    async def publish(self, *, last: bool = False) -> None:
        """Wake up everybody who waits for the next look."""
        async with self._published:
            self._last |= last
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
