"""While nobody looks at an embedded server, it is told only what has happened."""

import asyncio
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect.events import Event
from prefect.exceptions import PrefectHTTPStatusError

from autoexp.config.compose import compose
from autoexp.flows.concurrency import visits as watched
from autoexp.flows.concurrency.children import Updates
from autoexp.flows.concurrency.outbox import PrefectOutbox
from autoexp.flows.concurrency.turns import Precedence
from autoexp.flows.concurrency.visits import CHANGED, LOOKED, Visits
from autoexp.flows.concurrency.writer import SessionWriter
from autoexp.flows.engine.cancellation import CancellationWatcher
from autoexp.flows.publishing import posted_events
from autoexp.flows.publishing.artifacts import ArtifactPublisher
from autoexp.flows.publishing.posted_events import PostedEvents
from autoexp.monitor.monitor import Look
from autoexp.session.session import Session
from tests.builders import create
from tests.patience import PATIENCE_S

LOG = logging.getLogger("test")
MOVED = Look([], [], {"demo"})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(watched.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def server() -> Iterator[tuple[int, int]]:
    """The two ends of a pipe; the server's is the second."""
    ends = os.pipe()
    os.set_blocking(ends[0], False)
    yield ends
    for end in ends:
        os.close(end)


class Spawned:
    """Children that never run: their names."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def spawn(self, name: str, coroutine: Any) -> None:
        coroutine.close()
        self.names.append(name)


async def listening(server: tuple[int, int], heard: asyncio.Event) -> Visits:
    visits = Visits(server[0], heard.set)
    visits.listen()
    return visits


async def say(server: tuple[int, int], heard: asyncio.Event, what: bytes) -> None:
    heard.clear()
    os.write(server[1], what)
    await asyncio.wait_for(heard.wait(), 60)


async def test_a_visit_lasts_a_minute_and_is_new_once(
    server: tuple[int, int], clock: list[float]
) -> None:
    heard = asyncio.Event()
    visits = await listening(server, heard)
    assert not visits.is_watched
    await say(server, heard, LOOKED)
    assert visits.is_watched
    assert [visits.take_new(), visits.take_new()] == [True, False]
    clock[0] += 30
    await say(server, heard, LOOKED)
    assert not visits.take_new()
    clock[0] += 61
    assert not visits.is_watched
    await say(server, heard, LOOKED)
    assert visits.take_new()
    visits.close()


async def test_without_an_embedded_server_somebody_may_always_be_looking() -> None:
    visits = Visits(None, lambda: None)
    visits.listen()
    assert visits.is_watched
    assert not visits.are_known
    visits.close()


async def test_the_page_waits_for_somebody_to_look_and_is_true_then(
    server: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = create(compose("demo", ["cooldowns=[]"]), tmp_path)
    heard = asyncio.Event()
    visits = await listening(server, heard)
    updates = Updates()
    with Session.hold(path) as (session, _):
        writer = SessionWriter(path, updates, LOG)
        outbox = PrefectOutbox(updates, LOG)
        publisher = ArtifactPublisher(session, writer, outbox, visits, Precedence(), LOG)
        children: Any = Spawned()
        publisher.publish_if_due(children)
        assert children.names == ["publication"]  # the first page, when nobody has looked yet
        publisher._publishing = False
        publisher.note(MOVED)
        publisher.publish_if_due(children)
        assert children.names == ["publication"]
        publisher._published_at += 1e9  # not even due
        await say(server, heard, LOOKED)
        publisher.publish_if_due(children)
        assert children.names == ["publication"] * 2
        writer.close()
    visits.close()


async def test_states_are_asked_for_once_somebody_has_set_one(server: tuple[int, int]) -> None:
    heard = asyncio.Event()
    visits = await listening(server, heard)
    session: Any = None  # nothing is cancelled
    watcher = CancellationWatcher(str(uuid4()), visits, session, session, LOG)
    polls = 0

    async def poll() -> list[str] | None:
        nonlocal polls
        polls += 1
        return None

    watcher._poll = poll  # type: ignore[method-assign]
    await asyncio.wait_for(watcher.listen(), 60)  # no connection is kept open
    await watcher.poll()
    assert not watcher.is_due
    await say(server, heard, LOOKED)
    assert not watcher.is_due
    await say(server, heard, CHANGED)
    assert watcher.is_due
    await watcher.poll()
    assert not watcher.is_due
    assert polls == 2
    visits.close()


# Events


def event(number: int) -> Event:
    return Event(event=f"event-{number}", resource={"prefect.resource.id": "autoexp.test"})


class Client:
    """A client of a server that fails as often as is asked for, and then takes events."""

    def __init__(self, failures: list[Exception]) -> None:
        self.failures = failures
        self.taken: list[list[str]] = []

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def request(self, verb: str, path: str, json: list[dict[str, Any]]) -> None:
        assert (verb, path) == ("POST", "/events")
        if self.failures:
            raise self.failures.pop(0)
        self.taken.append([each["event"] for each in json])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posted_events, "_RETRY_S", 0.0)
    monkeypatch.setattr(posted_events, "_GATHER_S", 0.0)


async def sent(client: Client, monkeypatch: pytest.MonkeyPatch, numbers: range) -> list[str]:
    monkeypatch.setattr(posted_events, "get_client", lambda: client)
    events = PostedEvents()
    for number in numbers:
        events.put(("event", event(number)))
    async with asyncio.timeout(PATIENCE_S):
        while not events.is_empty:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return [name for batch in client.taken for name in batch]


async def test_events_reach_a_server_that_was_away_in_order_and_in_batches(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client([httpx.ConnectError("away")] * 3)
    assert await sent(client, monkeypatch, range(250)) == [f"event-{n}" for n in range(250)]
    assert [len(batch) for batch in client.taken] == [100, 100, 50]


async def test_events_that_the_server_will_never_take_hold_up_no_others(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = httpx.Request("POST", "http://127.0.0.1/api/events")
    refusal = httpx.Response(422, request=asked)
    error = PrefectHTTPStatusError("refused", request=asked, response=refusal)
    client = Client([error])
    assert await sent(client, monkeypatch, range(150)) == [f"event-{n}" for n in range(100, 150)]
