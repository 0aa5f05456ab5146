"""A URL is pinged after a look that the scheduler answered; what it does holds nobody up."""

import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from autoexp.errors import SchedulerUnavailable
from autoexp.flows.concurrency.children import Children
from autoexp.flows.engine.poller import SchedulerPoller
from autoexp.flows.publishing import heartbeat
from autoexp.flows.publishing.heartbeat import Heartbeat, ping
from autoexp.schedulers.base import AttemptRef, JobStatus

LOG = logging.getLogger(__name__)
REF = AttemptRef("k", Path("/x"), "k", "s", "1")


class Server(ThreadingHTTPServer):
    """Answers as it is told, and writes down what it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: list[str] = []
        self.code = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/ping/uuid"


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.send_response(self.server.code)
        self.end_headers()
        self.wfile.write(b"OK" * 10)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with Server() as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


class Scheduler:
    """Answers, or does not."""

    def __init__(self) -> None:
        self.is_silent = False

    def query(self, refs: Any) -> dict[str, JobStatus]:
        if self.is_silent:
            raise SchedulerUnavailable("away")
        return {ref.key: JobStatus("RUNNING") for ref in refs}


async def test_only_an_answer_of_the_scheduler_is_a_sign_of_life() -> None:
    scheduler: Any = Scheduler()
    poller = SchedulerPoller(scheduler, 1.0, LOG)
    found = []
    for is_silent, refs in ((False, [REF]), (True, [REF]), (False, []), (False, [REF])):
        scheduler.is_silent = is_silent
        async with Children(LOG) as children:
            poller.poll(children, refs)
        found.append((poller.take_answered(), poller.take_answered()))
    assert found == [(True, False), (False, False), (False, False), (True, False)]


async def test_a_ping_is_sent_once_a_minute_and_a_failure_is_one_warning(
    server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats = Heartbeat(server.url, LOG)
    for _ in range(3):
        async with Children(LOG) as children:
            beats.beat(children)
            beats.beat(children)
    assert server.asked == ["/ping/uuid"]
    monkeypatch.setattr(heartbeat, "_EVERY_S", 0.0)
    beats = Heartbeat(server.url, LOG)
    for code in (503, 503, 200):
        server.code = code
        async with Children(LOG) as children:
            beats.beat(children)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "monitoring.heartbeat_url: the server answered 503; it is tried again",
        "monitoring.heartbeat_url answers again",
    ]


async def test_without_a_url_nothing_is_sent() -> None:
    async with Children(LOG) as children:
        Heartbeat(None, LOG).beat(children)


def test_the_proxy_of_the_environment_is_used(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url.partition("/ping")[0])
    assert ping("http://heartbeats.example/abc") is None
    assert server.asked == ["http://heartbeats.example/abc"]


def test_what_went_wrong_does_not_name_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("http_proxy", raising=False)
    problem = ping("http://127.0.0.1:1/secret")
    assert problem is not None and "refused" in problem and "secret" not in problem
