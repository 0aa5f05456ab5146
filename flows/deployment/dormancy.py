"""A server that stands still while nobody asks it anything, and costs no CPU then.

It stops itself as Ctrl-Z would (SIGSTOP). Whoever started it waits for the next connection, which
the kernel takes meanwhile, and has it go on (SIGCONT). What its timers missed it does then.
"""

import math
import os
import signal
import time
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any

from prefect.server.database import provide_database_interface

from autoexp.flows.concurrency import memory
from autoexp.flows.concurrency.visits import CHANGED, LOOKED, OWN_HEADER, STARTED
from autoexp.flows.deployment.server import end_with_parent
from autoexp.flows.deployment.server_lock import App, Receive, Scope, Send
from autoexp.flows.deployment.sockets import is_connected

_QUIET_S = 3.0
# Longer than a page of the UI is quiet: it asks again every few seconds.
_QUIET_AFTER_VISIT_S = 15.0
_REPORT_S = 1.0
# Looking through all objects takes more than a report does.
_TIDY_S = 600.0


class Dormancy:
    """An application in front of Prefect's, which knows when nobody asks, and then stops all."""

    def __init__(self, app: App, port: int, starter: int) -> None:
        self._app = app
        self._port = port
        self._starter = starter
        self._parent = os.getppid()
        self._under_way = 0
        self._asked = False
        self._quiet_at = 0.0
        self._reported_at = 0.0
        self._tidied_at = -math.inf

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, self._tell_start(send))
            return
        is_own = any(name == OWN_HEADER.lower().encode() for name, _ in scope["headers"])
        self._under_way += 1
        if not is_own:
            self._report_visit()
        try:
            await self._app(scope, receive, send)
        finally:
            self._under_way -= 1
            self._asked = True
            self._stay_awake(_QUIET_S if is_own else _QUIET_AFTER_VISIT_S)
            if not is_own and sets_states(scope):
                self._tell(CHANGED)

    def _tell_start(self, send: Send) -> Send:
        async def told(message: MutableMapping[str, Any]) -> None:
            await send(message)
            if message["type"] == "lifespan.startup.complete":
                self._tell(STARTED)

        return told

    def _report_visit(self) -> None:
        now = time.monotonic()
        if now - self._reported_at >= _REPORT_S:
            self._reported_at = now
            self._tell(LOOKED)

    def _tell(self, what: bytes) -> None:
        with suppress(OSError):  # enough is said already, or nobody is there
            os.write(self._starter, what)

    def _stay_awake(self, seconds: float) -> None:
        self._quiet_at = max(self._quiet_at, time.monotonic() + seconds)

    async def stop_when_quiet(self) -> None:
        """Stop this process if nobody has asked for a while, until it is told to go on."""
        # Not before the first answer: whoever starts it waits for that.
        quiet = self._asked and not self._under_way and time.monotonic() >= self._quiet_at
        if quiet and not await uses_database() and not is_connected(self._port):
            self._stop()

    def _stop(self) -> None:
        # A process that stands still takes no other signal, and must not outlive its starter.
        end_with_parent(signal.SIGKILL)
        now = time.monotonic()
        if now - self._tidied_at >= _TIDY_S:
            self._tidied_at = now
            memory.give_back()
        memory.give_back_code()
        if os.getppid() == self._parent:
            os.kill(os.getpid(), signal.SIGSTOP)
        end_with_parent()
        if os.getppid() != self._parent:
            os.kill(os.getpid(), signal.SIGTERM)
        self._stay_awake(_QUIET_S)


def sets_states(scope: Scope) -> bool:
    """True for a request that sets states of runs, as cancelling does."""
    return scope["type"] == "http" and str(scope["path"]).rstrip("/").endswith("set_state")


async def uses_database() -> bool:
    """True while a transaction may be open: it would keep out other servers on the same file."""
    pool = (await provide_database_interface().engine()).pool
    counted = getattr(pool, "checkedout", None)  # a pool of a single connection has none
    return counted is not None and bool(counted())
