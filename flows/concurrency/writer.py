"""The session's one writer: a thread on which all records change, so writes never race."""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from autoexp.errors import SessionHeld
from autoexp.flows.concurrency.children import Updates
from autoexp.storage import atomic

_RETRY_S = 5.0
_PATIENCE_S = 15.0

P = ParamSpec("P")
T = TypeVar("T")


class SessionWriter:
    """Runs functions that read and write the session; a slow filesystem stops no coroutine."""

    def __init__(self, path: Path, updates: Updates, log: "logging.Logger | Any") -> None:
        self._path = path
        self._updates = updates
        self._log = log
        self._hangs_since: float | None = None
        self._under_way = 0
        self._timer: asyncio.TimerHandle | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="session")

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run on the session's thread."""
        loop = asyncio.get_running_loop()
        self._updates.wake()
        self._under_way += 1
        if self._under_way == 1:
            self._restart_timer()
        try:
            return await loop.run_in_executor(self._thread, lambda: function(*args, **kwargs))
        finally:
            self._under_way -= 1
            self._note_answer()
            # A call may wait for those before it: a filesystem that answers them does not hang.
            self._restart_timer()

    async def stand(self, watch: Callable[[], T], busy_s: Callable[[], float]) -> T:
        """Run what mostly sleeps on the session's thread, and ends once the updates wake it.

        `busy_s()` says for how long it has been at work without a sleep.
        """
        under_way = asyncio.get_running_loop().run_in_executor(self._thread, watch)
        try:
            while not (await asyncio.wait({under_way}, timeout=_PATIENCE_S))[0]:
                if busy_s() > _PATIENCE_S:
                    self._note_hang()
            self._note_answer()
            return under_way.result()
        finally:
            self._updates.wake()

    def _restart_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        awaited = self._under_way > 0
        self._timer = loop.call_later(_PATIENCE_S, self._note_hang) if awaited else None

    async def persist(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run, and retry for as long as the disk is full, read-only or away.

        An interruption ends that as a cancellation of the caller: whoever resumes does it again. So
        does a lease that another monitor has taken over. Raises OSError where no retry will help,
        such as a name that is too long.
        """
        failures = 0
        while True:
            try:
                done = await self.run(function, *args, **kwargs)
                self._updates.mark_changed()
                return done
            except SessionHeld as error:
                self._updates.interrupt(str(error))
                raise asyncio.CancelledError from error
            except OSError as error:
                if not atomic.is_passing(error):
                    raise
                failures += 1
                if failures == 1:
                    self._log.warning("the session cannot be written (%s); retrying", error)
                if self._updates.interrupted is not None:
                    raise asyncio.CancelledError from error
                await self._updates.pause(_RETRY_S)

    def _note_hang(self) -> None:
        if self._hangs_since is None:
            self._hangs_since = time.monotonic() - _PATIENCE_S
            self._log.warning(
                "%s: the filesystem has not answered for %.0f s. Jobs go on, and so does the "
                "session as soon as it answers: nothing is lost. Is it mounted and healthy?",
                self._path,
                _PATIENCE_S,
            )

    def _note_answer(self) -> None:
        if self._hangs_since is not None:
            hung, self._hangs_since = time.monotonic() - self._hangs_since, None
            self._log.warning("%s: the filesystem answers again, after %.0f s", self._path, hung)

    def close(self) -> None:
        """Wait for the calls under way, and end the thread."""
        self._thread.shutdown()
