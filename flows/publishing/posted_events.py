"""Sends Prefect's events as requests, in batches and in order, until the server takes them.

Prefect's own client keeps a web socket open for as long as it lives. A proxy that passes none would
have heartbeats end while the session lives; and it asks over it every few seconds whether the other
side is there: an embedded server would never come to rest.
"""

import asyncio
from http import HTTPStatus
from types import TracebackType
from typing import Self

from prefect import get_client
from prefect.client.orchestration import PrefectClient
from prefect.events import Event
from prefect.events.clients import EventsClient
from prefect.events.worker import EventsWorker, emit_events_to_cloud
from prefect.exceptions import PrefectHTTPStatusError

_GATHER_S = 0.2
_RETRY_S = 5.0
_BATCH = 100
_LAST_S = 30.0  # at a process's end, for what a server that is away has not taken


def post_events() -> None:
    """Have what this process emits from now on posted; Prefect Cloud has a way of its own."""
    if not emit_events_to_cloud():
        EventsWorker.set_client_override(PostedEvents)


class PostedEvents(EventsClient):
    """What Prefect's worker for events hands them to, one after the other."""

    def __init__(self) -> None:
        self._waiting: list[Event] = []
        self._sending: asyncio.Task[None] | None = None
        self._client: PrefectClient

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._client = get_client()
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._sending is not None:
            await asyncio.wait([self._sending], timeout=_LAST_S)
        await self._client.__aexit__(kind, error, trace)
        await super().__aexit__(kind, error, trace)

    async def _emit(self, event: Event) -> None:
        self._waiting.append(event)
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        await asyncio.sleep(_GATHER_S)
        while batch := self._waiting[:_BATCH]:
            if await self._is_taken(batch):
                del self._waiting[: len(batch)]
            else:
                await asyncio.sleep(_RETRY_S)  # the session itself says that the server is away

    async def _is_taken(self, batch: list[Event]) -> bool:
        """Send a batch; one that the server will never take counts as taken."""
        content = [event.model_dump(mode="json") for event in batch]
        try:
            await self._client.request("POST", "/events", json=content)
        except PrefectHTTPStatusError as error:
            return error.response.status_code == HTTPStatus.UNPROCESSABLE_ENTITY
        except Exception:
            return False
        return True
