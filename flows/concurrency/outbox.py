"""Writes to the Prefect API: one at a time, with retries for those that must arrive."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from autoexp.flows.concurrency.children import Updates
from autoexp.flows.concurrency.foreground import foreground

_PAUSE_S = 10.0
_FOREGROUND_S = 10.0
_WORKER_S = 24 * 3600.0
_PREFECT_MODULES = frozenset({"prefect", "httpx", "httpcore", "websockets"})


class WriteSlot:
    """A ticket for the write lock on the Prefect API.

    Writes that meet in a server on SQLite are refused ("database is locked", a 503), and Prefect's
    client then pauses for two seconds each time.
    """

    def __init__(self, write_lock: asyncio.Lock) -> None:
        self._write_lock = write_lock
        self._is_held = False

    async def acquire(self, within_s: float | None = None) -> None:
        """Acquire the write lock; after `within_s` seconds go on without it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._write_lock.acquire()
                self._is_held = True

    def release(self) -> None:
        """Release the write lock; repeatable."""
        if self._is_held:
            self._is_held = False
            self._write_lock.release()


class PrefectOutbox:
    """Sends with retries while the session runs, and for a while longer when it is over.

    In a terminal somebody waits for the prompt; under a worker nobody does, and a last state that
    is never sent would have the session run again.
    """

    def __init__(self, updates: Updates, log: "logging.Logger | Any") -> None:
        self.write_lock = asyncio.Lock()
        self._updates = updates
        self._log = log
        self._patience_s = _FOREGROUND_S if foreground() else _WORKER_S
        self._pause_s = min(_PAUSE_S, self._patience_s / 4)

    async def send_with_retry(self, what: str, send: Callable[[], Awaitable[object]]) -> bool:
        """Call `send` until it succeeds; False once that has taken too long."""
        since, failures = time.monotonic(), 0
        while True:
            try:
                await send()
            except Exception as error:
                failures += 1
                if failures == 1:
                    self._log.warning("Prefect did not take %s (%s); retrying", what, error)
                if self._is_enough(since):
                    self._log.warning("Prefect did not accept %s: giving up", what)
                    return False
                await self._updates.pause(self._pause_s)
            else:
                self.note_taken()
                return True

    def note_taken(self) -> None:
        """Note that Prefect has accepted something: while it does, a terminal keeps waiting."""
        if terminal := foreground():
            terminal.taken_at = time.monotonic()

    def _is_enough(self, since: float) -> bool:
        if self._updates.interrupted is not None:
            return True
        ended = self._updates.ended_at
        return ended is not None and time.monotonic() - max(since, ended) > self._patience_s


def is_prefect_error(error: BaseException) -> bool:
    """True for an error of the connection to Prefect, and not of the work itself."""
    return type(error).__module__.partition(".")[0] in _PREFECT_MODULES
