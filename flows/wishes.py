"""What people wish in Prefect's UI: cancelling the session's flow run, or one job's subflow.

A flow that runs outside a worker, or that outlived its worker, is not told of a cancellation: its
own state has to be read. A server that is away says nothing.
"""

import logging
import time
from typing import Any
from uuid import UUID

from prefect import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType

_EVERY_S = 5.0


class Wishes:
    """Reads the states of the session's flow runs now and then; one request for all of them."""

    def __init__(self, flow_run_id: str | None, log: "logging.Logger | Any") -> None:
        self._session_run = UUID(flow_run_id) if flow_run_id else None
        self._log = log
        self._job_runs: dict[UUID, str] = {}
        self._next_at = time.monotonic() + _EVERY_S

    def add(self, flow_run_id: str, job: str) -> None:
        """From now on, mind the subflow of a job."""
        self._job_runs[UUID(flow_run_id)] = job

    def forget(self, job: str) -> None:
        """A job is over: its subflow needs no minding any more."""
        self._job_runs = {run: name for run, name in self._job_runs.items() if name != job}

    @property
    def is_due(self) -> bool:
        return self._session_run is not None and time.monotonic() >= self._next_at

    async def cancelled(self) -> list[str] | None:
        """Jobs that somebody cancels in Prefect; empty: all of the session's; None: none."""
        self._next_at = time.monotonic() + _EVERY_S
        try:
            return await self._ask()
        except Exception as error:
            self._log.debug("Prefect does not say whether anything is cancelled: %s", error)
            return None

    async def _ask(self) -> list[str] | None:
        assert self._session_run is not None
        ids = [self._session_run, *self._job_runs]
        async with get_client() as client:
            runs = await client.read_flow_runs(
                flow_run_filter=FlowRunFilter(
                    id=FlowRunFilterId(any_=ids),
                    state=FlowRunFilterState(
                        type=FlowRunFilterStateType(
                            any_=[StateType.CANCELLING, StateType.CANCELLED]
                        )
                    ),
                )
            )
        found = {run.id for run in runs}
        if self._session_run in found:
            return []
        return [self._job_runs[run] for run in found] or None
