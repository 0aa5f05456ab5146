"""Serves a session's page on this machine, and what is new of it while the session runs."""

import hashlib
import json
import secrets
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from autoexp.errors import AutoexpError, BadInput
from autoexp.reports.html.page import contents, live_page
from autoexp.session.journal import Journal
from autoexp.session.session import Session

_LOOPBACK = "127.0.0.1"
_PATIENCE_S = 10.0
"""How long a connection may take to say what it wants."""
_SHARE = 20
"""Reading a session takes no more than this part of the time, however large it is."""
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class _Source:
    """The page and its contents as read from disk, at most as often as that is cheap."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._journal: Journal | None = None
        self._lock = threading.Lock()
        self._contents, self._again_at = b"", 0.0

    def page(self) -> bytes:
        with self._lock:
            return live_page(self._session()).encode()

    def contents(self) -> bytes:
        with self._lock:
            if time.monotonic() >= self._again_at:
                began = time.monotonic()
                self._contents = json.dumps(contents(self._session())).encode()
                ended = time.monotonic()
                self._again_at = ended + _SHARE * (ended - began)
            return self._contents

    def _session(self) -> Session:
        session = Session.load(self._path, self._journal)
        self._journal = session.journal
        return session


class ReportServer(ThreadingHTTPServer):
    """A server of one session's page, for those who have its address with the token in it."""

    daemon_threads = True

    def __init__(self, path: Path, port: int = 0) -> None:
        """Listen on a port of the loopback, a free one by default; raises BadInput for one in use.

        The session has to be readable.
        """
        self.source = _Source(path)
        self.source.contents()
        self.token = secrets.token_urlsafe(24)
        try:
            super().__init__((_LOOPBACK, port), _Handler)
        except (OSError, OverflowError) as error:
            raise BadInput(f"--port {port}: cannot be listened on ({error})") from error

    @property
    def url(self) -> str:
        return f"http://{_LOOPBACK}:{self.server_port}/{self.token}/"

    def answer(self, path: str) -> tuple[Callable[[], bytes], str] | None:
        """What makes the answer to a path, and its type; None without the token."""
        token, _, rest = path.removeprefix("/").partition("/")
        if not secrets.compare_digest(token.encode(), self.token.encode()):
            return None
        known = {
            "": (self.source.page, "text/html; charset=utf-8"),
            "content.json": (self.source.contents, "application/json"),
        }
        return known.get(rest)


class _Handler(BaseHTTPRequestHandler):
    server: ReportServer
    timeout = _PATIENCE_S

    def do_GET(self) -> None:
        found = self.server.answer(self.path)
        if found is None:
            self._send(HTTPStatus.NOT_FOUND)
            return
        make, kind = found
        try:
            content = make()
        except (AutoexpError, OSError):
            self._send(HTTPStatus.SERVICE_UNAVAILABLE)  # as of a session that was moved
            return
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        if self.headers.get("If-None-Match") == tag:
            self._send(HTTPStatus.NOT_MODIFIED, tag=tag)
        else:
            self._send(HTTPStatus.OK, content, kind, tag)

    def _send(
        self, status: HTTPStatus, content: bytes = b"", kind: str = "", tag: str = ""
    ) -> None:
        self.send_response(status)
        given = {"Content-Type": kind, "ETag": tag, "Content-Length": str(len(content))}
        for name, value in {**_HEADERS, **given}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def version_string(self) -> str:
        return "autoexp"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: requests have the token in them."""
