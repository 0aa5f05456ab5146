"""A session whose server, from its middle on, answers what no Prefect server should."""

import http.client
import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
from prefect.settings import PREFECT_API_URL

from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.flows.commands import start_monitor, wait_until_running
from tests.flows.sessions import Make, hold_back
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.prefect

ANSWERS = {
    "a page of a proxy": (200, b"<html>maintenance</html>"),
    "a database that has lost the run": (404, b'{"detail": "Flow run not found"}'),
    "a login": (401, b'{"exception_message": "Unauthorized"}'),
}


class Between(http.server.ThreadingHTTPServer):
    """Passes requests on to Prefect's server until it has an answer of its own."""

    daemon_threads = True
    request_queue_size = 100
    own: tuple[int, bytes] | None = None
    given = 0

    def __init__(self, url: str) -> None:
        self.behind = urlsplit(url).netloc
        super().__init__(("127.0.0.1", 0), _Pass)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/api"


class _Pass(http.server.BaseHTTPRequestHandler):
    server: Between
    protocol_version = "HTTP/1.1"

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.server.own is not None:
            self.server.given += 1
            status, answer = self.server.own
        else:
            kept = ("authorization", "content-type")
            headers = {name: self.headers[name] for name in kept if name in self.headers}
            behind = http.client.HTTPConnection(self.server.behind, timeout=PATIENCE_S)
            behind.request(self.command, self.path, body, headers)
            found = behind.getresponse()
            status, answer = found.status, found.read()
            behind.close()
        with suppress(OSError):  # whoever asked has gone
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _pass

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Iterator[Between]:
    found = Between(str(PREFECT_API_URL.value()))
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("PREFECT_API_URL", found.url)
    yield found
    found.shutdown()
    found.server_close()


@pytest.mark.parametrize("answer", ANSWERS)
def test_jobs_end_right_and_the_exit_code_is_theirs_whatever_the_server_answers(
    answer: str, make_session: Make, between: Between
) -> None:
    path = make_session("cooldowns=[{at: [100], decay: {iterations: 50}}]")
    gate = hold_back(path)
    monitor = start_monitor(path)
    wait_until_running(path)
    between.own = ANSWERS[answer]
    gate.touch()

    output, _ = monitor.communicate(timeout=PATIENCE_S)

    assert monitor.returncode == 0, output
    assert between.given > 0
    # Prefect logs its own for a subflow that it has begun and cannot end.
    frames = re.findall(r'File "([^"]+)", line', output)
    assert [file for file in frames if not re.search(r"site-packages|/lib/python3", file)] == []
    jobs = Session.load(path).jobs.values()
    assert {(job.verdict, len(job.attempts)) for job in jobs} == {(Verdict.FINISHED, 1)}
    assert "finished (reached iteration" in output
