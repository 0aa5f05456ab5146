"""Log lines on their way to Prefect: its thread for them wakes up for as long as it exists."""

import asyncio
import logging
import time
from contextlib import suppress

from prefect.logging.handlers import APILogHandler

from autoexp.flows.concurrency.children import Children
from autoexp.flows.publishing import job_logs

_LOGGERS = ("prefect.flow_runs", "prefect.task_runs", job_logs.NAME)
_QUIET_S = 30.0
_PATIENCE_S = 10.0


class LogLines(logging.Filter):
    """Ends Prefect's thread for log lines while there are none; the next line starts a new one."""

    def __init__(self) -> None:
        super().__init__()
        self._logged_at = time.monotonic()
        self._is_resting = False
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(self)

    def close(self) -> None:
        """Stop listening."""
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Note that something is logged; it passes."""
        self._logged_at, self._is_resting = time.monotonic(), False
        return True

    def rest_if_quiet(self, children: Children) -> bool:
        """End the thread, if nothing was logged for a while: all of it has been sent by then.

        True if it was ended now.
        """
        if self._is_resting or time.monotonic() - self._logged_at < _QUIET_S:
            return False
        self._is_resting = True
        children.spawn("the end of Prefect's thread for log lines", _end_thread())
        return True


async def _end_thread() -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE_S):
            await APILogHandler.aflush()
