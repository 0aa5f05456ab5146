"""Polls for cancellations requested in the Prefect UI: of the session's flow run, or of one job.

A flow that runs outside a worker, or that outlived its worker, gets no signal when it is cancelled:
its own state has to be read. The server's events, on an open connection, tell when; without one it
is read every few seconds. A server that was away for long, and got no heartbeats, may have marked
the run as crashed meanwhile: it is set back to Running.
"""

import asyncio
import logging
import math
import time
from typing import Any
from uuid import UUID

from prefect import State, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.events import Event
from prefect.events.clients import get_events_subscriber
from prefect.events.filters import EventFilter, EventNameFilter
from prefect.states import Running

from autoexp.flows.concurrency.children import Children
from autoexp.flows.concurrency.visits import Visits
from autoexp.flows.concurrency.writer import SessionWriter
from autoexp.monitor.recorder import Recorder
from autoexp.operations import requests

_POLL_INTERVAL_S = 5.0
# A connection may be dead and not know it.
_POLL_INTERVAL_WITH_EVENTS_S = 600.0
_RECONNECT_S = 15.0
_WHO = "cancelled in Prefect"
_CANCELLED = frozenset({StateType.CANCELLING, StateType.CANCELLED})
_CRASHED = frozenset({StateType.CRASHED, StateType.FAILED})
_EVENTS = [f"prefect.flow-run.{kind.value.capitalize()}" for kind in (*_CANCELLED, *_CRASHED)]


class CancellationWatcher:
    """Reads the states of the session's flow runs now and then; one request for all of them."""

    def __init__(
        self,
        flow_run_id: str | None,
        visits: Visits,
        writer: SessionWriter,
        recorder: Recorder,
        log: "logging.Logger | Any",
    ) -> None:
        self._visits = visits
        self._writer = writer
        self._recorder = recorder
        self._session_run = UUID(flow_run_id) if flow_run_id else None
        self._log = log
        self._job_runs: dict[UUID, str] = {}
        self._next_at = time.monotonic() + _POLL_INTERVAL_S
        self._subscribed = False
        self._polling = False

    async def listen(self) -> None:
        """Follow the server's events about these flow runs, until this is cancelled.

        An embedded server says by itself when a state was set, and an open connection would keep it
        awake.
        """
        while self._session_run is not None and not self._visits.are_known:
            try:
                chosen = EventFilter(event=EventNameFilter(name=_EVENTS))
                async with get_events_subscriber(chosen, reconnection_attempts=0) as events:
                    # Earlier changes are read; later ones come as events.
                    self._subscribed, self._next_at = True, time.monotonic()
                    self._visits.heard()
                    async for event in events:
                        self._process(event)
            except Exception as error:
                self._log.debug("no events from Prefect: %s", error)
            self._subscribed, self._next_at = False, time.monotonic() + _POLL_INTERVAL_S
            await asyncio.sleep(_RECONNECT_S)

    def _process(self, event: Event) -> None:
        run = event.resource.id.removeprefix("prefect.flow-run.")
        if run in {str(mine) for mine in (self._session_run, *self._job_runs)}:
            self._next_at = time.monotonic()
            self._visits.heard()

    def add(self, flow_run_id: str, job: str) -> None:
        """Watch the subflow of a job from now on."""
        self._job_runs[UUID(flow_run_id)] = job

    def forget(self, job: str) -> None:
        """Stop watching the subflow of a job that is over."""
        self._job_runs = {run: name for run, name in self._job_runs.items() if name != job}

    def poll_if_due(self, children: Children) -> None:
        """Poll in the background if it is time, and have what is cancelled there cancelled here."""
        if not self._polling and self.is_due:
            self._polling = True
            children.spawn("cancellations in Prefect", self._poll_and_cancel())

    async def _poll_and_cancel(self) -> None:
        try:
            jobs = await self.poll()
            if jobs is not None:
                names = await self._writer.persist(self._request_cancel, tuple(jobs))
                if names:
                    self._log.info("%s: %s", _WHO, ", ".join(names))
        finally:
            self._polling = False

    def _request_cancel(self, jobs: tuple[str, ...]) -> list[str]:
        return self._recorder.apply(requests.request_cancel, jobs, _WHO)

    @property
    def due_at(self) -> float:
        """When the next request is due, by the monotonic clock, unless something is heard."""
        return math.inf if self._session_run is None else self._next_at

    @property
    def is_due(self) -> bool:
        if self._visits.take_change():
            self._next_at = time.monotonic()
        return time.monotonic() >= self.due_at

    async def poll(self) -> list[str] | None:
        """Jobs that are cancelled in Prefect; empty: all of the session's; None: none."""
        self._next_at = time.monotonic() + self._interval_s
        try:
            return await self._poll()
        except Exception as error:
            self._next_at = min(self._next_at, time.monotonic() + _RECONNECT_S)
            self._log.debug("could not poll Prefect for cancellations: %s", error)
            return None

    @property
    def _interval_s(self) -> float:
        if self._visits.are_known:
            return math.inf
        return _POLL_INTERVAL_WITH_EVENTS_S if self._subscribed else _POLL_INTERVAL_S

    async def _poll(self) -> list[str] | None:
        assert self._session_run is not None
        ids = [self._session_run, *self._job_runs]
        async with get_client() as client:
            runs = await client.read_flow_runs(
                flow_run_filter=FlowRunFilter(
                    id=FlowRunFilterId(any_=ids),
                    state=FlowRunFilterState(
                        type=FlowRunFilterStateType(any_=[*_CANCELLED, *_CRASHED])
                    ),
                )
            )
            states = {run.id: run.state_type for run in runs}
            if states.get(self._session_run) in _CRASHED:
                alive: State[Any] = Running(message="the session has been watched all the time")
                await client.set_flow_run_state(self._session_run, alive, force=True)
                self._log.warning("Prefect marked this flow run as crashed; set it back to Running")
        found = {run for run, state in states.items() if state in _CANCELLED}
        if self._session_run in found:
            return []
        return [self._job_runs[run] for run in found] or None
