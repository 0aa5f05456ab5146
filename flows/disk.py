"""The session's one writer: a thread on which all records are changed, so writes never race."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

_RETRY_S = 5.0

P = ParamSpec("P")
T = TypeVar("T")


class Disk:
    """Runs functions that read and write the session; a slow filesystem stops no coroutine."""

    def __init__(self, log: "logging.Logger | Any") -> None:
        self._log = log
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="session")

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run on the session's thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: function(*args, **kwargs))

    async def persist(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run, and try on for as long as the disk is full, read-only or away."""
        while True:
            try:
                return await self.run(function, *args, **kwargs)
            except OSError as error:
                self._log.warning("the session cannot be written (%s); trying on", error)
                await asyncio.sleep(_RETRY_S)

    def close(self) -> None:
        """Wait for what is under way, and end the thread."""
        self._thread.shutdown()
