"""Who goes first when much is to be done at once: each training in turn, and work before its show.

All of it is for the loop's thread.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_QUIET_S = 0.1
_PATIENCE_S = 4.0


class Turns:
    """Lets a few pieces of work begin at a time, in turn for each group of them.

    So a crowd of one training is done one by one and not all at the end, and holds up no other
    training. What takes longer than `longest_s` keeps its turn no longer: it waits for something.
    """

    def __init__(self, at_once: int, longest_s: float) -> None:
        self._free = at_once
        self._longest_s = longest_s
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def turn(self, group: str) -> AsyncIterator[None]:
        """Wait for a turn of the group, and keep it to the end of the block."""
        await self._begin(group)
        end = asyncio.get_running_loop().call_later(self._longest_s, self._pass_on)
        try:
            yield
        finally:
            if end.when() > asyncio.get_running_loop().time():
                end.cancel()
                self._pass_on()

    async def _begin(self, group: str) -> None:
        if self._free:
            self._free -= 1
            return
        mine = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(group, deque()).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            group = next(iter(self._waiting))
            queue = self._waiting.pop(group)
            following = queue.popleft()
            if queue:
                self._waiting[group] = queue  # behind the other groups
            if not following.done():
                following.set_result(None)
                return
        self._free += 1


class Precedence:
    """Lets work on jobs go before what shows it in Prefect, which takes more time of the loop."""

    def __init__(self) -> None:
        self._worked_at = 0.0

    def note_work(self) -> None:
        """Note that a piece of work has begun, or ended."""
        self._worked_at = time.monotonic()

    async def yield_to_work(self, since: float) -> None:
        """Wait until no work has begun or ended for a moment.

        At most for a while, counted from `since` by the monotonic clock; then others of the loop
        have one turn.
        """
        await asyncio.sleep(0)
        while True:
            left_s = min(since + _PATIENCE_S, self._worked_at + _QUIET_S) - time.monotonic()
            if left_s <= 0:
                return
            await asyncio.sleep(left_s)
