"""Sends curves to trackers beside the loop: passes of `autoexp track`, each a process of its own.

What a tracker's package does to a process, how long its server takes and what it holds in memory is
none of the monitor's.
"""

import asyncio
import json
import logging
import math
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from autoexp import sinks
from autoexp.flows.concurrency.children import Children, Updates
from autoexp.tracking.settings import Tracking

_LONGEST_S = 900.0
"""Of a pass: it ends where it stands, and the next one goes on there."""
_LAST_S = 120.0
"""Of the last pass, for which a session that is over waits."""
_CHECK_S = 0.5
_FIRST_S = 10.0
_WHOLE = "pass"
"""In the place of a tracker's name: the pass itself has failed."""
_GRACE_S = 3.0  # between terminating a pass and killing it


class Trackers:
    """Sends what is new, at most as often as `tracking.every` says, one pass at a time."""

    def __init__(
        self,
        session: Path,
        settings: Tracking | None,
        updates: Updates,
        log: "logging.Logger | Any",
    ) -> None:
        self._session = session
        self._settings = settings
        self._updates = updates
        self._log = log
        self._has_news = settings is not None
        self._is_under_way = False
        self._next_at = time.monotonic() + _FIRST_S
        self._problems: dict[str, str] = {}

    def note(self, changed: set[str]) -> None:
        """Note that the numbers of some jobs have moved."""
        self._has_news |= self._settings is not None and bool(changed)

    @property
    def due_at(self) -> float:
        """When the next pass is due, by the monotonic clock."""
        return self._next_at if self._has_news and not self._is_under_way else math.inf

    def send_if_due(self, children: Children) -> None:
        """Begin a pass in the background, if there is something new and it is time."""
        if self._settings is None or time.monotonic() < self.due_at:
            return
        self._next_at = time.monotonic() + self._settings.every
        self._has_news, self._is_under_way = False, True
        children.spawn("tracking", self._send())

    async def close(self) -> None:
        """Send the rest of a session that is over; what does not get through is left on disk."""
        if self._settings is not None and self._updates.interrupted is None:
            await self._pass(_LAST_S)
            if self._problems:
                self._log.warning(
                    "tracking: not all was sent; `autoexp track %s` sends it", self._session.name
                )

    async def _send(self) -> None:
        try:
            await self._pass(_LONGEST_S)
        finally:
            self._is_under_way = False
            self._updates.mark_changed()

    async def _pass(self, longest_s: float) -> None:
        """One pass; each tracker's problem is a warning once, and so is that it answers again."""
        process = await asyncio.create_subprocess_exec(
            *command(self._session),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is the monitor's
        )
        reading = asyncio.create_task(process.communicate())
        if not await self._ends(reading, longest_s):
            if self._updates.interrupted is None:
                self._note({_WHOLE: f"took longer than {longest_s:.0f} s"})
            await _end(process, reading)
            return
        out, err = reading.result()
        if process.returncode:
            said = err.decode(errors="replace").strip().rpartition("\n")[2]
            self._note({_WHOLE: said or f"exit code {process.returncode}"})
            return
        with suppress(ValueError, KeyError, TypeError):
            found = {one["tracker"]: one["problem"] for one in json.loads(out)}
            self._note({_WHOLE: None, **found})

    async def _ends(self, reading: "asyncio.Task[Any]", longest_s: float) -> bool:
        """Wait for a pass: it is given up after its time, and when the monitor is interrupted."""
        deadline = time.monotonic() + longest_s
        while time.monotonic() < deadline and self._updates.interrupted is None:
            if self._updates.ended_at is not None:
                deadline = min(deadline, self._updates.ended_at + 2 * _LAST_S)
            done, _ = await asyncio.wait([reading], timeout=_CHECK_S)
            if done:
                return True
        return False

    def _note(self, problems: dict[str, str | None]) -> None:
        """Log which problems have begun and ended; of other trackers nothing is known."""
        for tracker, problem in problems.items():
            if problem is None and self._problems.pop(tracker, None) is not None:
                self._log.warning("tracking.%s: goes on", tracker)
            elif problem is not None and tracker not in self._problems:
                problem = self._problems[tracker] = sinks.line(problem)
                self._log.warning(
                    "tracking.%s: %s; it is tried again, and nothing is lost", tracker, problem
                )


def command(session: Path) -> tuple[str, ...]:
    """The command of a pass over a session."""
    return (sys.executable, "-m", "autoexp", "track", str(session), "--rests", "--json")


async def _end(process: asyncio.subprocess.Process, reading: "asyncio.Task[Any]") -> None:
    """End a pass: what it has not sent is sent by the next one."""
    with suppress(ProcessLookupError):
        process.terminate()
    done, _ = await asyncio.wait([reading], timeout=_GRACE_S)
    if not done:
        with suppress(ProcessLookupError):
            process.kill()
        await asyncio.wait([reading], timeout=_GRACE_S)
