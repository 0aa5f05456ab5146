"""A server between a session and Prefect's: passes requests on, late or with answers of its own."""

import http.client
import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from prefect.settings import PREFECT_API_URL

from tests.patience import PATIENCE_S


class Between(http.server.ThreadingHTTPServer):
    """Passes requests on to Prefect's server until it has an answer of its own."""

    daemon_threads = True
    request_queue_size = 100
    own: tuple[int, bytes] | None = None
    version: bytes | None = None
    late_s = 0.0
    given = 0
    """How many answers were not the server's own, or came late."""

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
        if self.server.late_s:
            self.server.given += 1
            time.sleep(self.server.late_s)
        if self.server.own is not None:
            self.server.given += 1
            status, answer = self.server.own
        elif self.server.version and self.path.endswith("/admin/version"):
            self.server.given += 1
            status, answer = 200, self.server.version
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


@contextmanager
def standing_between() -> Iterator[Between]:
    """A server in front of that of Prefect's settings."""
    found = Between(str(PREFECT_API_URL.value()))
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()
