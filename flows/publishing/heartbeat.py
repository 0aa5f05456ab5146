"""Pings a URL while a session is watched, so that somebody notices when it no longer is.

A ping says: this monitor has looked, and the scheduler has answered. What only one of them does is
no sign of life.
"""

import asyncio
import logging
import time
import urllib.error
import urllib.request
from typing import Any

from autoexp import sinks
from autoexp.flows.concurrency.children import Children

_EVERY_S = 60.0
_TIMEOUT_S = 10.0
_MOST = 1024  # bytes that are read of the answer


class Heartbeat:
    """Pings at most once a minute, beside the loop, one ping at a time."""

    def __init__(self, url: str | None, log: "logging.Logger | Any") -> None:
        self._url = url
        self._log = log
        self._next_at = 0.0
        self._is_under_way = False
        self._fails = False

    def beat(self, children: Children) -> None:
        """Ping, if it is time: after a look to which the scheduler had an answer."""
        if self._url is None or self._is_under_way or time.monotonic() < self._next_at:
            return
        self._next_at = time.monotonic() + _EVERY_S
        self._is_under_way = True
        children.spawn("heartbeat", self._ping(self._url))

    async def _ping(self, url: str) -> None:
        try:
            problem = await asyncio.to_thread(ping, url)
        finally:
            self._is_under_way = False
        if problem is not None and not self._fails:
            self._log.warning("monitoring.heartbeat_url: %s; it is tried again", problem)
        elif problem is None and self._fails:
            self._log.warning("monitoring.heartbeat_url answers again")
        self._fails = problem is not None


def ping(url: str) -> str | None:
    """GET a URL, through the proxy of the environment; returns what went wrong, without the URL.

    Whoever knows the URL can ping it.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "autoexp"})
    try:
        # The module's own opener keeps the proxies of its first request.
        opener = urllib.request.build_opener()
        with opener.open(request, timeout=_TIMEOUT_S) as answer:
            answer.read(_MOST)
    except urllib.error.HTTPError as error:
        return f"the server answered {error.code}"
    except urllib.error.URLError as error:
        return sinks.line(f"no answer ({error.reason})")
    except (OSError, ValueError) as error:
        return sinks.line(f"no answer ({type(error).__name__})")
    return None
