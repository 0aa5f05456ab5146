"""Background coroutines of the loop: an exception in one is logged and ends no other."""

import asyncio
import logging
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self


class Children:
    """Coroutines that the loop starts and never awaits; the block ends when all of them have."""

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
