"""The session's one writer: a thread on which all records are changed, so writes never race."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from flows.news import News

_RETRY_S = 5.0

P = ParamSpec("P")
T = TypeVar("T")


class Disk:
    """Runs functions that read and write the session; a slow filesystem stops no coroutine."""

    def __init__(self, news: News, log: "logging.Logger | Any") -> None:
        self._news = news
        self._log = log
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="session")

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run on the session's thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: function(*args, **kwargs))

    async def persist(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run, and try on for as long as the disk is full, read-only or away.

        An interruption ends that as a cancellation of the caller: whoever resumes sees to it.
        """
        failures = 0
        while True:
            try:
                done = await self.run(function, *args, **kwargs)
                self._news.stir()
                return done
            except OSError as error:
                failures += 1
                if failures == 1:
                    self._log.warning("the session cannot be written (%s); trying on", error)
                if self._news.interrupted is not None:
                    raise asyncio.CancelledError from error
                await self._news.pause(_RETRY_S)

    def close(self) -> None:
        """Wait for what is under way, and end the thread."""
        self._thread.shutdown()
