"""Nobody but the owner is answered by a server that we start."""

import asyncio
import base64
import importlib
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from prefect import get_client
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_HOME,
    temporary_settings,
)
from rich.console import Console

from autoexp.cli import run
from autoexp.flows.deployment import deploy, embedded, server, server_checks
from autoexp.flows.deployment.server_lock import Lock, Scope
from autoexp.storage import permissions
from tests.patience import until
from tests.slurm.browser import CHROMIUM, open_page

STRING = "autoexp:what-opens-it"
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")

# Runs as somebody else, who has no checkout: prints a status for each request on standard input.
ASK = """
import json, socket, sys
host, port = sys.argv[1], int(sys.argv[2])
for line in sys.stdin:
    method, path, headers, body = json.loads(line)
    with socket.create_connection((host, port), timeout=60) as ask:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}:{port}", "Connection: close"]
        lines = lines if "Upgrade" not in headers else lines[:2]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += [f"Content-Length: {len(body)}"] if body else []
        ask.sendall("\\r\\n".join([*lines, "", body]).encode())
        answer = b""
        while data := ask.recv(65536):
            answer += data
            if "Upgrade" in headers:
                break
        print(answer.split()[1].decode(), flush=True)
"""
WEBSOCKET = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded.Server]:
    """The embedded server of `autoexp run`, with a home of its own."""
    folder = tmp_path_factory.mktemp("locked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(folder / "prefect"))
        patch.delenv("PREFECT_API_URL", raising=False)
        before = os.umask(0)
        try:
            found = embedded.Server(folder)
        finally:
            os.umask(before)
    try:
        found.wait()
        yield found
    finally:
        found.stop()


class Deployed(NamedTuple):
    """The server that `autoexp deploy` starts."""

    url: str
    auth_string: str


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """A server that was started as `autoexp deploy` starts it, with a home of its own."""
    home = tmp_path_factory.mktemp("deployed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        found = Deployed(f"http://127.0.0.1:{free.getsockname()[1]}", server.new_auth_string())
    with pytest.MonkeyPatch.context() as patch, temporary_settings({PREFECT_HOME: home}):
        patch.setenv("PREFECT_HOME", str(home))
        before = os.umask(0)
        try:
            deploy.start_at(f"{found.url}/api", found.auth_string)
            os.umask(before)
            yield found
        finally:
            os.umask(before)
            if (pid := home / "server.pid").exists():
                os.kill(int(pid.read_text()), signal.SIGTERM)


def web_sockets() -> list[str]:
    """The paths of all web sockets that the API has."""
    from prefect.server import api
    from starlette.routing import WebSocketRoute

    found = []
    for each in pkgutil.iter_modules(api.__path__, f"{api.__name__}."):
        router = getattr(importlib.import_module(each.name), "router", None)
        routes = [] if router is None else router.routes
        found += [f"/api{route.path}" for route in routes if isinstance(route, WebSocketRoute)]
    assert len(found) >= 5
    return [path.replace("{", "").replace("}", "") for path in found]


def requests(url: str) -> list[list[Any]]:
    """All that the API has a route for, and what lies beside it."""
    from prefect.server.api.server import create_app

    told = create_app(ephemeral=True).openapi()["paths"]
    routes = [
        [method.upper(), "/api" + path.replace("{", "").replace("}", ""), {}, ""]
        for path, methods in told.items()
        for method in methods
    ]
    assert len(routes) > 150
    foreign = {"Origin": "http://elsewhere", "Access-Control-Request-Method": "POST"}
    wrong = base64.b64encode(b"autoexp:guessed").decode()
    return [
        *routes,
        *(["GET", path, {}, ""] for path in ("/", "/runs", "/ui-settings", "/v2/", "/docs")),
        *(["GET", path, {}, ""] for path in ("/openapi.json", "/redoc", "/api/docs", "/api")),
        *(["GET", path, {}, ""] for path in ("/api/health", "/api/ready", "/metrics", "//api/")),
        *(["GET", path, {}, ""] for path in ("/api/../api/health", "/api/%68ealth", "*")),
        *(["GET", path, {}, ""] for path in ("/assets/x.js", "/favicon.ico", "/api/static/x")),
        *(["GET", path, {}, ""] for path in ("/docs/oauth2-redirect", "/api/openapi.json")),
        ["GET", "/runs", {"Accept": "text/html"}, ""],
        ["HEAD", "/", {}, ""],
        ["OPTIONS", "/api/flow_runs/filter", foreign, ""],
        ["TRACE", "/", {}, ""],
        ["GET", "/", {"Cookie": 'a="; b=\\x01; autoexp-1=' + "0" * 64}, ""],
        ["POST", "/api/flow_runs/filter", {"Authorization": f"Basic {wrong}"}, "{}"],
        ["POST", "/api/flow_runs/filter", {"Authorization": "Basic"}, "{}"],
        ["POST", "/api/flow_runs/filter", {"Authorization": "Bearer x"}, "{}"],
        *(["GET", path, WEBSOCKET, ""] for path in (*web_sockets(), "/elsewhere", "/api", "/")),
    ]


@as_root
@pytest.mark.prefect
@pytest.mark.parametrize("started_by", ["locked", "deployed"])
def test_another_user_gets_a_401_whatever_is_asked(
    started_by: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue(started_by).url
    asked = requests(url)
    host, _, port = url.removeprefix("http://").rpartition(":")
    answer = subprocess.run(
        [*NOBODY, "/usr/bin/env", "python3", "-c", ASK, host, port],
        input="".join(f"{json.dumps(each)}\n" for each in asked),
        capture_output=True,
        text=True,
        timeout=300,
        cwd="/",
    )
    assert answer.returncode == 0, answer.stderr
    said = answer.stdout.split()
    assert len(said) == len(asked)
    let_in = [each for each, status in zip(asked, said, strict=True) if status != "401"]
    assert let_in == []


@as_root
@pytest.mark.prefect
def test_another_user_can_read_neither_the_string_nor_what_the_server_writes(
    locked: embedded.Server,
) -> None:
    assert locked.login.read_text().strip() == locked.auth_string
    home = locked.login.parent / "prefect"
    for path in (locked.login, locked.log, home / "prefect.db"):
        assert path.stat().st_mode & 0o077 == 0, path
    pid = str(locked.pid)
    environ = subprocess.run([*NOBODY, "cat", f"/proc/{pid}/environ"], capture_output=True)
    assert environ.returncode != 0
    assert locked.auth_string.encode() in Path(f"/proc/{pid}/environ").read_bytes()
    shown = subprocess.run(["ps", "-eo", "args", "ww"], capture_output=True, text=True).stdout
    assert locked.auth_string not in shown
    assert "autoexp.flows.deployment.serve" in shown
    assert locked.auth_string not in locked.log.read_text()


@pytest.mark.prefect
def test_only_the_loopback_address_is_listened_on(locked: embedded.Server) -> None:
    port = f"{server_checks.port_of(locked.url):04X}"
    rows = [
        line.split()[1:4]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    listens = [local for local, _, state in rows if state == "0A" and local.endswith(f":{port}")]
    assert listens == [f"0100007F:{port}"]


@pytest.mark.prefect
@pytest.mark.parametrize("started_by", ["locked", "deployed"])
async def test_a_web_socket_says_nothing_before_the_string_was_said(
    started_by: str, request: pytest.FixtureRequest
) -> None:
    import websockets

    locked = request.getfixturevalue(started_by)
    root = locked.url.replace("http", "ws")
    for path in web_sockets():
        for first in ({"type": "auth", "token": "autoexp:guessed"}, {"type": "filter"}):
            url = root + path
            async with websockets.connect(url, subprotocols=["prefect"]) as stream:  # type: ignore[list-item]
                await stream.send(json.dumps(first))
                with pytest.raises(websockets.ConnectionClosed):
                    await asyncio.wait_for(stream.recv(), 60)
    url = f"{root}/api/events/out"
    async with websockets.connect(url, subprotocols=["prefect"]) as stream:  # type: ignore[list-item]
        await stream.send(json.dumps({"type": "auth", "token": locked.auth_string}))
        assert json.loads(await asyncio.wait_for(stream.recv(), 60)) == {"type": "auth_success"}


@pytest.mark.prefect
async def test_the_owner_is_let_in(locked: embedded.Server) -> None:
    assert server_checks.answers(f"{locked.url}/api", locked.auth_string)
    assert not server_checks.lets_in(f"{locked.url}/api")
    assert server_checks.lets_in(f"{locked.url}/api", locked.auth_string)
    ours = {
        PREFECT_API_URL: f"{locked.url}/api",
        PREFECT_API_AUTH_STRING: locked.auth_string,
    }
    with temporary_settings(ours):
        async with get_client() as client:
            assert await client.read_flow_runs(limit=1) == []


@pytest.mark.prefect
@pytest.mark.skipif(CHROMIUM is None, reason="no browser here")
def test_the_printed_address_opens_the_ui(locked: embedded.Server, tmp_path: Path) -> None:
    assert "Authentication string" in open_page(f"{locked.url}/flows", tmp_path / "closed.png")
    shown = open_page(f"{locked.url}/flows#{locked.auth_string}", tmp_path / "open.png")
    assert "Authentication string" not in shown
    assert "Work Pools" in shown


@pytest.mark.prefect
def test_the_port_of_a_server_that_died_is_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setattr(embedded, "settings", lambda *_: {"PREFECT_SERVER_API_AUTH_STRING": ""})
    monkeypatch.delenv("PREFECT_API_AUTH_STRING")
    dead = embedded.Server(tmp_path)  # it does not serve without a lock, and ends
    with pytest.raises(server.AutoexpError, match="did not start"):
        dead.wait()
    port = server_checks.port_of(dead.url)
    with pytest.raises(OSError, match="in use"):
        server.bound_socket(port)

    def refused() -> bool:
        return not server_checks.sockets.listeners(port)

    until(refused, "the end of listening")
    assert "needs a lock" in dead.log.read_text()
    dead.stop()
    assert not dead.login.exists()
    server.bound_socket(port).close()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_string_is_printed_on_a_terminal_and_never_into_a_log(
    is_terminal: bool, tmp_path: Path
) -> None:
    class Known:
        url, auth_string, login = "http://127.0.0.1:4", STRING, tmp_path / "prefect-login"

    out = Console(file=StringIO(), force_terminal=is_terminal, width=20, highlight=False)
    run._say_where_it_is(Known(), out)  # type: ignore[arg-type]
    assert isinstance(out.file, StringIO)
    said = out.file.getvalue()
    assert (STRING in said) is is_terminal
    assert (str(tmp_path / "prefect-login") in said) is not is_terminal
    assert said.startswith("Prefect UI while it runs: http://127.0.0.1:4")


@as_root
def test_another_users_server_is_refused_by_its_owners_name(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/api"
    serve = (
        "import socket, sys; s = socket.socket(); "
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); "
        f"s.bind(('127.0.0.1', {server_checks.port_of(url)})); s.listen(); sys.stdin.read()"
    )
    somebody = subprocess.Popen(
        [*NOBODY, "/usr/bin/env", "python3", "-c", serve], stdin=subprocess.PIPE, cwd="/"
    )
    try:
        until(lambda: server_checks.sockets.listeners(server_checks.port_of(url)), "their server")
        with pytest.raises(server.AutoexpError, match=f"belongs to {permissions.user(65534)}"):
            server_checks.refuse_strangers(url)
        for command in (("run", "demo", "--session", "s"), ("deploy",), ("worker",)):
            environment = {**os.environ, "PREFECT_API_URL": url, "AUTOEXP_SESSIONS": str(tmp_path)}
            answer = subprocess.run(
                [sys.executable, "-m", "autoexp", *command],
                env=environment,
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert answer.returncode == 1, answer.stdout
            assert f"belongs to {permissions.user(65534)}, not to you" in answer.stderr
            assert "Traceback" not in answer.stderr
    finally:
        somebody.communicate()


async def answered(lock: Lock, scope: Scope) -> list[int | str]:
    """The status that comes, or `inside` where the application is asked."""
    seen: list[int | str] = []

    async def send(message: Any) -> None:
        if message["type"].endswith("response.start"):
            seen.append(message["status"])

    async def receive() -> dict[str, Any]:
        return {}

    await lock(scope, receive, send)
    return seen


async def test_what_opens_the_uis_files_opens_nothing_of_the_api() -> None:
    async def inside(scope: Scope, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    lock = Lock(inside, STRING)
    files = sha256(f"autoexp: files of the UI {STRING}".encode()).hexdigest()
    cookie = [(b"cookie", f"x=y; autoexp-4200={files}".encode())]
    header = [(b"authorization", b"Basic " + base64.b64encode(STRING.encode()))]

    async def status(method: str, path: str, headers: list[tuple[bytes, bytes]]) -> int | str:
        scope = {"type": "http", "method": method, "path": path, "headers": headers}
        (found,) = await answered(lock, scope)
        return found

    assert await status("GET", "/assets/index.js", cookie) == 200
    assert await status("GET", "/assets/index.js", []) == 401
    assert await status("POST", "/assets/index.js", cookie) == 401
    assert await status("GET", "/api/admin/version", cookie) == 401
    assert await status("GET", "/api", cookie) == 401
    assert await status("GET", "/api/admin/version", header) == 200
    assert await status("DELETE", "/api/flow_runs/1", header) == 200


def test_a_server_without_a_lock_is_not_started() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PREFECT_API_AUTH_STRING"}
    command = [sys.executable, "-m", "autoexp.flows.deployment.serve"]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert answer.returncode == 1
    assert "needs a lock" in answer.stderr
