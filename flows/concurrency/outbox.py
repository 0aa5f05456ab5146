"""Writes to the Prefect API: one at a time, with retries; an outage of it is told once."""

import asyncio
import json
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
_LOST = frozenset({404, 409})
_PREFECT_MODULES = frozenset({"prefect", "httpx", "httpcore", "websockets"})


class WriteSlot:
    """A ticket for the write lock on the Prefect API.

    Writes that meet in a server on SQLite are refused ("database is locked", a 503), and Prefect's
    client then pauses for two seconds each time.
    """

    def __init__(self, write_lock: asyncio.Lock) -> None:
        self._write_lock = write_lock
        self._is_held = False
        self.asked_at = 0.0
        """When it was asked for the last time, by the monotonic clock: nothing is sent before."""

    async def acquire(self, within_s: float | None = None) -> None:
        """Acquire the write lock; after `within_s` seconds go on without it."""
        self.asked_at = time.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._write_lock.acquire()
                self._is_held = True

    def release(self) -> None:
        """Release the write lock; repeatable."""
        if self._is_held:
            self._is_held = False
            self._write_lock.release()


class Outage(logging.Filter):
    """Tells once that Prefect does not take what it is sent, and once that it does again.

    As a filter it keeps Prefect's own account of that, with its traceback, out of a run's log.
    """

    def __init__(self, log: "logging.Logger | Any") -> None:
        super().__init__()
        self._log = log
        self._failures = 0
        self._is_told = False
        self._refused_at = 0.0
        # What Prefect has refused before while it took other things is not told again and again.
        self._refused: set[str] = set()
        # What was sent for a run that it does not know: a database that was emptied takes others.
        self._lost: set[str] = set()

    def listen_to(self, engine: logging.Logger) -> None:
        """Filter what is logged there from now on, in place of the session before."""
        for former in [each for each in engine.filters if isinstance(each, Outage)]:
            engine.removeFilter(former)
        engine.addFilter(self)

    def note_refused(self, what: str, error: BaseException) -> None:
        """Note that Prefect did not take something, which is sent again where it can be."""
        if _is_of_a_lost_run(error):
            self._lost.add(what)
        elif self._lost:  # all that was told is the loss, which stays: this is something else
            self._lost.clear()
            self._failures, self._is_told = 0, False
        self._failures += 1
        self._refused_at = time.monotonic()
        if not (self._is_told or what in self._refused):
            self._is_told = True
            self._log.warning(
                "Prefect did not take %s (%s); the session goes on, and tells Prefect once it "
                "answers",
                *(what, error),
            )
        else:
            self._log.debug("Prefect did not take %s (%s)", what, error)
        self._refused.add(what)

    def note_taken(self, what: str, sent_at: float) -> None:
        """Note that Prefect has taken something, sent from `sent_at` on by the monotonic clock.

        What was on its way when something else was refused says nothing about the time after; nor
        does what a server takes that has lost a run.
        """
        self._refused.discard(what)
        self._lost.discard(what)
        if sent_at < self._refused_at or self._lost:
            return
        if self._is_told:
            self._log.warning("Prefect answers again, after %d failures", self._failures)
        self._failures, self._is_told = 0, False

    def filter(self, record: logging.LogRecord) -> bool:
        """Drop what Prefect's engine says of its own requests while the outage is told."""
        error = record.exc_info[1] if record.exc_info else None
        # A page that is no JSON is an error of Python's, raised in Prefect's client.
        is_its_own = error is not None and (
            is_prefect_error(error) or isinstance(error, json.JSONDecodeError)
        )
        return not (is_its_own and self._is_told)


class PrefectOutbox:
    """Sends with retries while the session runs, and for a while longer when it is over.

    In a terminal somebody waits for the prompt; under a worker nobody does, and a last state that
    is never sent would have the session run again.
    """

    def __init__(self, updates: Updates, log: "logging.Logger | Any") -> None:
        self.write_lock = asyncio.Lock()
        self.outage = Outage(log)
        self._updates = updates
        self._log = log
        self._patience_s = _FOREGROUND_S if foreground() else _WORKER_S
        self._pause_s = min(_PAUSE_S, self._patience_s / 4)

    async def send_with_retry(self, what: str, send: Callable[[], Awaitable[object]]) -> bool:
        """Call `send` until it succeeds; False once that has taken too long."""
        since = time.monotonic()
        while True:
            sent_at = time.monotonic()
            try:
                await send()
            except Exception as error:
                self.outage.note_refused(what, error)
                if self._is_enough(since):
                    self._log.debug("Prefect did not take %s: giving up", what)
                    return False
                await self._updates.pause(self._pause_s)
            else:
                self.note_taken(what, sent_at)
                return True

    def note_taken(self, what: str, sent_at: float) -> None:
        """Note that Prefect has accepted something: while it does, a terminal keeps waiting."""
        self.outage.note_taken(what, sent_at)
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


def _is_of_a_lost_run(error: BaseException) -> bool:
    """True where Prefect answers that it does not know a run, or what that belongs to."""
    found = [getattr(each, "response", None) for each in (error, error.__cause__)]
    return any(each is not None and each.status_code in _LOST for each in found)
