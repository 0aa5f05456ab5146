"""Polls the scheduler: one query for all jobs per tick, which the loop never waits for."""

import asyncio
import logging
import math
import time
from typing import Any

from autoexp.backoff import delay_s
from autoexp.errors import SchedulerUnavailable
from autoexp.flows.concurrency.children import Children
from autoexp.schedulers.base import AttemptRef, JobStatus, Scheduler

_LONGEST_BACK_OFF_S = 300.0
_LONGEST_CALM_S = 300.0
_CALM_TICKS = 20
"""How long jobs go unasked for that their logs show to be alive; whichever is shorter."""


class SchedulerPoller:
    """Queries the scheduler in the background; logs an outage once, and backs off."""

    def __init__(self, scheduler: Scheduler, tick_s: float, log: "logging.Logger | Any") -> None:
        self._scheduler = scheduler
        self._tick_s = tick_s
        self._log = log
        self._answers: dict[str, JobStatus] = {}
        self._querying = False
        self._next_at = 0.0
        self._asked_at = -math.inf
        self._misses = 0
        self._has_answered = False

    def take_answered(self) -> bool:
        """True if the scheduler has answered since the last call."""
        answered, self._has_answered = self._has_answered, False
        return answered

    def collect(self) -> dict[str, JobStatus]:
        """The answers since the last call, by key."""
        answers, self._answers = self._answers, {}
        return answers

    def give_back(self, answers: dict[str, JobStatus]) -> None:
        """Keep answers that could not be processed, for the next call of `collect`."""
        self._answers = {**answers, **self._answers}

    @property
    def is_due(self) -> bool:
        """True when it is time for a query, and none is under way."""
        return not self._querying and time.monotonic() >= self._next_at

    @property
    def is_under_way(self) -> bool:
        """True while an answer is awaited, or waits to be processed."""
        return self._querying or bool(self._answers)

    def due_at(self, *, is_calm: bool) -> float:
        """When the next query is due, by the monotonic clock."""
        return max(self._next_at, self._asked_at + self._calm_s) if is_calm else self._next_at

    @property
    def _calm_s(self) -> float:
        return max(self._tick_s, min(_LONGEST_CALM_S, _CALM_TICKS * self._tick_s))

    def poll(self, children: Children, refs: list[AttemptRef], *, is_calm: bool = False) -> None:
        """Start a query about these attempts; not at each tick while all are known to run on."""
        now = time.monotonic()
        if is_calm and now - self._asked_at < self._calm_s:
            self._next_at = now + self._tick_s  # until then a log may fall silent
            return
        self._asked_at = now
        self._querying = True
        children.spawn("query of the scheduler", self._query(refs))

    async def _query(self, refs: list[AttemptRef]) -> None:
        started = time.monotonic()
        wait = self._tick_s
        try:
            if refs:
                self._answers |= await asyncio.to_thread(self._scheduler.query, refs)
                self._has_answered = True
        except Exception as error:
            self._misses += 1
            if self._misses == 1:
                known = isinstance(error, SchedulerUnavailable)
                what = error if known else f"{type(error).__name__}: {error}"
                self._log.warning("no answer from the scheduler (%s); no job is touched", what)
            wait = delay_s(self._misses, 2 * self._tick_s, _LONGEST_BACK_OFF_S)
        else:
            if self._misses:
                self._log.warning("the scheduler answers again after %d misses", self._misses)
            self._misses = 0
        finally:
            self._next_at = started + wait
            self._querying = False
