"""Sends Prefect's events as requests, in batches and in order, until the server takes them.

Prefect's own client keeps a web socket open for as long as it lives. A proxy that passes none would
have heartbeats end while the session lives; and it asks over it every few seconds whether the other
side is there: an embedded server would never come to rest.
"""

import asyncio
import threading
import time
from http import HTTPStatus

from prefect import get_client
from prefect.events import Event
from prefect.events.worker import (
    EventsWorker,
    ProcessPoolForwardingEventsClient,
    emit_events_to_cloud,
)
from prefect.exceptions import PrefectHTTPStatusError

_GATHER_S = 0.2
_RETRY_S = 5.0
_BATCH = 100
_LOOK_S = 0.05


class PostedEvents:
    """A queue in whose place each event that is put into it is posted."""

    def __init__(self) -> None:
        self._waiting: list[Event] = []
        self._sending: asyncio.Task[None] | None = None

    @property
    def is_empty(self) -> bool:
        """True if all events that were put have been taken by the server."""
        return not self._waiting

    def put(self, item: tuple[str, Event]) -> None:
        """Post an event soon, in its turn; called on the loop of Prefect's worker for events."""
        self._waiting.append(item[1])
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
            async with get_client() as client:
                await client.request("POST", "/events", json=content)
        except PrefectHTTPStatusError as error:
            return error.response.status_code == HTTPStatus.UNPROCESSABLE_ENTITY
        except Exception:
            return False
        return True


_POSTED = PostedEvents()


def post_events() -> None:
    """Have what this process emits from now on posted; Prefect Cloud has a way of its own."""
    if not emit_events_to_cloud():
        # Prefect emits nothing through a client that it does not know; this one of its own puts
        # each event into a queue, as for another process.
        EventsWorker.set_client_override(ProcessPoolForwardingEventsClient, event_queue=_POSTED)


def begin() -> None:
    """Begin to send in the context of the caller, a flow run.

    Prefect relates each event to what is around the first that a process emits, too: were that a
    task run's, every checkpoint and every model would be of the first submission.
    """
    EventsWorker.instance()


async def all_are_posted(within_s: float) -> bool:
    """Wait until what was emitted is taken by the server; False where that takes too long."""
    deadline = time.monotonic() + within_s
    # Of its own, and no thread that a process waits for as it ends.
    handled = threading.Thread(target=EventsWorker.instance().wait_until_empty, daemon=True)
    handled.start()
    while handled.is_alive() or not _POSTED.is_empty:
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(_LOOK_S)
    return True
