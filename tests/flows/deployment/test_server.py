"""Which Prefect server is asked, past which proxies, and what is said of one that is none."""

import gc
import http.server
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path

import httpx
import pytest
from prefect.exceptions import ObjectNotFound

from autoexp import proxies
from autoexp.cli import run as terminal
from autoexp.config.compose import compose
from autoexp.errors import AutoexpError
from autoexp.flows.concurrency import foreground
from autoexp.flows.concurrency.foreground import Foreground, run_in_thread
from autoexp.flows.deployment import deploy, embedded, server, server_checks
from autoexp.schedulers.slurm import commands as slurm_commands
from autoexp.session.session import Session
from autoexp.states import Verdict
from autoexp.storage import processes
from tests.builders import create

Serve = Callable[..., str]
PROXY = "http://somebody:secret@127.0.0.1:9"
SOURCES = ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH")


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers of a few pages; whatever else they are asked for is `otherwise`."""
    with ExitStack() as stack:

        def start(pages: dict[str, bytes], otherwise: tuple[int, bytes] = (404, b"")) -> str:
            class Handler(http.server.BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    found = pages.get(self.path)
                    status, body = otherwise if found is None else (200, found)
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

                do_POST = do_GET

                def log_message(self, *_: object) -> None:
                    pass

            started = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            threading.Thread(target=started.serve_forever, daemon=True).start()
            stack.callback(started.server_close)
            stack.callback(started.shutdown)
            return f"http://127.0.0.1:{started.server_address[1]}"

        yield start


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the proxies of whoever runs the tests."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


def test_this_machines_own_servers_are_reached_past_every_proxy(
    monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> None:
    proxy = serve({}, (503, b"<html>ERR_ACCESS_DENIED</html>"))
    url = serve({"/api/health": b"true"})
    for name in ("http_proxy", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy)
    monkeypatch.setenv("NO_PROXY", "intranet.example")
    assert server_checks.answers(f"{url}/api")
    get = f"import urllib.request as r; print(r.urlopen('{url}/api/health').read())"
    command = [sys.executable, "-c", get]
    assert subprocess.run(command, capture_output=True).returncode != 0

    monkeypatch.setenv("no_proxy", "")  # for it to be put back
    monkeypatch.delenv("no_proxy")
    server.bypass_proxies()

    assert os.environ["no_proxy"] == os.environ["NO_PROXY"]
    assert os.environ["no_proxy"].split(",")[0] == "intranet.example"
    assert subprocess.run(command, capture_output=True).stdout == b"b'true'\n"
    again = os.environ["no_proxy"]
    server.bypass_proxies()
    assert os.environ["no_proxy"] == again


def test_without_proxies_or_with_none_for_everything_no_variable_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.bypass_proxies()
    assert "no_proxy" not in os.environ
    monkeypatch.setenv("http_proxy", PROXY)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("NO_PROXY", "*")
    server.bypass_proxies()
    assert os.environ["no_proxy"] == "*"


@pytest.fixture
def socks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A SOCKS proxy in the environment, which Prefect's client cannot use without socksio."""
    monkeypatch.setattr(proxies, "_hidden", {})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "intranet.example")
    monkeypatch.setenv("ALL_PROXY", PROXY.replace("http", "socks5h"))
    return os.environ["ALL_PROXY"]


@pytest.mark.parametrize("url", [None, "http://127.0.0.1:4200/api"])
def test_a_socks_proxy_keeps_nobody_from_this_machines_own_server_and_jobs_still_get_it(
    monkeypatch: pytest.MonkeyPatch, serve: Serve, socks: str, url: str | None
) -> None:
    if url is not None:
        monkeypatch.setenv("PREFECT_API_URL", url)
    with pytest.raises(ImportError, match="socksio"):
        httpx.Client()
    server.bypass_proxies()
    with httpx.Client() as client:
        assert client.get(f"{serve({'/api/health': b'true'})}/api/health").text == "true"
    assert "ALL_PROXY" not in os.environ
    assert slurm_commands.environment()["ALL_PROXY"] == proxies.environment()["ALL_PROXY"] == socks


def test_a_socks_proxy_to_a_server_elsewhere_stays(
    monkeypatch: pytest.MonkeyPatch, socks: str
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "https://prefect.example/api")
    server.bypass_proxies()
    assert os.environ["ALL_PROXY"] == socks


def test_a_url_without_its_path_is_told_the_right_one(serve: Serve) -> None:
    url = serve({"/api/health": b"true"}, (404, b'{"detail": "Not Found"}'))
    assert server_checks.problem(f"{url}/api") is None
    assert server_checks.problem(f"{url}/api/") is None
    for wrong in (url, f"{url}/"):
        assert f"export PREFECT_API_URL={url}/api" in str(server_checks.problem(wrong))


def test_a_server_that_answers_without_the_string_is_warned_of_and_no_other(serve: Serve) -> None:
    open_to_all = serve({"/api/admin/version": b'"3.8.8"'})
    assert f"{open_to_all}/api takes orders" in str(
        server_checks.warning_when_open(f"{open_to_all}/api")
    )
    for status in (401, 403, 404, 500):
        assert server_checks.warning_when_open(f"{serve({}, (status, b'{}'))}/api") is None
    assert server_checks.warning_when_open("http://127.0.0.1:9/api") is None


def test_a_slow_server_is_waited_for_before_it_is_said_to_refuse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def slow(url: str, auth_string: str | None, timeout_s: float = 3.0) -> server_checks._Page:
        if timeout_s < 30:
            raise TimeoutError(url)
        return server_checks._Page(200, b'"3.8.8"')

    monkeypatch.setattr(server_checks, "_get", slow)
    assert server_checks.lets_in("http://127.0.0.1:9/api")


def test_a_database_of_a_newer_prefect_is_one_sentence_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_DATABASE_CONNECTION_URL", raising=False)
    with closing(sqlite3.connect(tmp_path / "prefect.db")) as database, database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        database.execute("INSERT INTO alembic_version VALUES ('fedcba987654')")
    started = embedded.Server(tmp_path)
    try:
        with pytest.raises(AutoexpError, match=rf"database in {tmp_path} is of a newer Prefect .*"):
            started.wait()
    finally:
        started.stop()


def test_a_server_that_takes_orders_from_everybody_gets_no_worker_and_no_deployments(
    monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> None:
    pages = {"/api/health": b"true", "/api/admin/version": b'"3.8.8"'}
    started: list[object] = []
    monkeypatch.setattr(deploy.subprocess, "Popen", started.append)
    monkeypatch.setattr(deploy.subprocess, "run", started.append)
    for answers, otherwise, said in (
        (pages, (404, b""), "from everybody"),
        ({}, (401, b"{}"), "take our string"),
        # Too busy to say no, which is no lock.
        ({"/api/health": b"true"}, (503, b"{}"), "does not say whether it lets everybody in"),
    ):
        url = f"{serve(answers, otherwise)}/api"
        monkeypatch.setattr(deploy, "_url", lambda url=url: url)
        for command in (deploy.deploy, partial(deploy.worker, "slurm-login")):
            with pytest.raises(server.AutoexpError, match=said):
                command()
    assert started == []


def test_a_page_that_is_not_prefects_is_no_health(serve: Serve) -> None:
    page = serve({}, (200, b"<html>maintenance</html>"))
    assert "a page that is not Prefect's came (HTTP 200)" in str(
        server_checks.problem(f"{page}/api")
    )
    login = serve({}, (403, b"<html>who are you?</html>"))
    assert "(HTTP 403)" in str(server_checks.problem(f"{login}/api"))
    other = serve({"/api/health": b'{"status": "ok"}'}, (503, b"{}"))
    assert server_checks.problem(f"{other}/other/") is not None
    cloud = serve({}, (404, b'{"detail": "Not Found"}'))
    assert server_checks.problem(f"{cloud}/api/accounts/1/workspaces/2") is None


def test_a_proxy_in_between_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> None:
    proxy = serve({}, (503, b"<html>ERR_ACCESS_DENIED</html>"))
    monkeypatch.setenv("http_proxy", proxy.replace("//", "//somebody:secret@"))
    said = str(server_checks.problem("http://login1.cluster:4200/api"))
    assert f"the request went through the proxy {proxy.removeprefix('http://')}" in said
    assert "add login1.cluster to no_proxy" in said
    assert "secret" not in said


@pytest.mark.parametrize("url", ["127.0.0.1:4200/api", "", "http://[x/api", "http://a b/api"])
def test_what_is_no_address_is_said_and_not_raised(url: str) -> None:
    assert server_checks.problem(url)


PROFILES = """
# PREFECT_API_URL = "http://127.0.0.1:1/api"
active = "mine"

[profiles.mine]
{mine}

[profiles.other]
PREFECT_API_URL = "http://127.0.0.1:9/api"
"""
OF_MINE = 'PREFECT_API_URL = "http://127.0.0.1:7/api"'


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, None),
        ({"home/profiles.toml": ""}, None),
        ({"home/profiles.toml": PROFILES.format(mine="")}, None),
        ({"home/profiles.toml": PROFILES.format(mine=OF_MINE)}, "http://127.0.0.1:7/api"),
        ({"pyproject.toml": "[tool.prefect]\napi.url = 'http://a/api'"}, "http://a/api"),
        (
            {
                "home/profiles.toml": PROFILES.format(mine=OF_MINE),
                "prefect.toml": "api.url = 'http://b/api'",
                "pyproject.toml": "[tool.prefect]\napi.url = 'http://a/api'",
            },
            "http://b/api",
        ),
        (
            {".env": "PREFECT_API_URL=http://c/api", "prefect.toml": "api.url = 'http://b/api'"},
            "http://c/api",
        ),
    ],
)
def test_the_server_is_the_one_that_prefects_own_settings_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, str],
    found: str | None,
) -> None:
    for name in SOURCES:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    assert server.configured_url() == found
    monkeypatch.setenv("PREFECT_API_URL", "http://d/api")
    assert server.configured_url() == "http://d/api"


def test_settings_that_cannot_be_read_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SOURCES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prefect.toml").write_text("api.url =\n")
    with pytest.raises(server.AutoexpError, match=r"settings cannot be read .*prefect\.toml"):
        server.configured_url()


def test_a_server_that_answers_for_its_health_and_nothing_else_is_not_waited_for(
    tmp_path: Path, serve: Serve
) -> None:
    pages = {"/api/health": b"true", "/api/admin/version": b'"3.8.8"'}
    url = serve(pages, (500, b'{"exception_message": "no such table"}'))
    impatient = (
        "import sys; from autoexp.cli import main;"
        "from autoexp.flows.deployment import server_checks; server_checks._FIRST_ANSWER_S = 1.0;"
        "raise SystemExit(main.main(sys.argv[1:]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", impatient, "run", "demo", "--session", "s"],
        env={**os.environ, "AUTOEXP_SESSIONS": str(tmp_path), "PREFECT_API_URL": f"{url}/api"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 1
    (line,) = [said for said in run.stderr.splitlines() if said.startswith("autoexp:")]
    assert "is there, but does not list its flow runs" in line
    assert "`autoexp resume s`" in line
    assert "running" not in line  # nothing was submitted
    # It also lets everybody in.
    (warning,) = [said for said in run.stderr.splitlines() if said.startswith("warning:")]
    assert "takes orders from everybody" in warning and "`autoexp deploy` starts one" in warning
    assert "Traceback" not in run.stdout + run.stderr
    assert Session.load(tmp_path / "s").jobs["demo"].attempts == []


def test_a_flow_whose_session_is_over_is_left_alone_though_the_server_seems_healthy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(foreground, "_LONGEST_S", 0.5)
    prompt, tells = Foreground(), threading.Event()
    prompt.stop("SIGTERM")

    ended = run_in_thread(prompt, lambda: void(tells.wait(60)))

    tells.set()
    assert not ended


def test_a_flow_whose_session_is_over_is_left_alone_once_prefect_takes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(foreground, "_PATIENCE_S", 3.0)
    prompt, tells, taken = Foreground(), threading.Event(), threading.Event()
    prompt.stop("SIGTERM")

    def prefect_takes_some_of_it() -> None:
        for _ in range(50):
            prompt.taken_at = time.monotonic()
            time.sleep(0.1)
        taken.set()
        tells.wait(60)

    assert not run_in_thread(prompt, prefect_takes_some_of_it)
    assert taken.is_set()  # it was waited for as long as Prefect took something
    tells.set()


READS_ON = """
import atexit, sys, threading, time
from autoexp.flows.concurrency import foreground
from autoexp.logs.linear import LinePattern
def read():
    while True:
        LinePattern(r"(?P<n>\\S+) loss").search(b"x" * 200000)
for _ in range(4):
    threading.Thread(target=read, daemon=True).start()
time.sleep(0.5)
atexit.register(print, "the embedded server is stopped")
sys.stdout.write("the outcome\\n")
foreground.leave(7)
"""


def test_the_exit_code_is_the_sessions_though_an_abandoned_flow_still_reads_a_log() -> None:
    left = subprocess.run([sys.executable, "-c", READS_ON], capture_output=True, text=True)
    assert (left.returncode, left.stderr) == (7, "")
    assert left.stdout == "the outcome\nthe embedded server is stopped\n"


def test_a_session_that_is_removed_while_it_is_watched_is_said_to_be_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = create(compose("demo", ["cooldowns=[]"]), tmp_path)

    def removed(*_: object) -> bool:
        shutil.rmtree(path)
        return True

    monkeypatch.setattr(terminal, "_run_flow", removed)
    with pytest.raises(server.AutoexpError, match="no longer exists: it was removed") as raised:
        terminal.watch_in_terminal(path)
    assert raised.value.exit_code == 1


def void(*_: object) -> None:
    """Takes anything, and is nothing."""


def test_a_server_that_refuses_the_end_of_a_session_does_not_make_it_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = create(compose("demo", ["cooldowns=[]"]), tmp_path)
    with Session.hold(path) as (session, _):
        session.settle(session.jobs["demo"], Verdict.FINISHED, "reached iteration 2000")

    def refused(*_: object) -> bool:
        raise ObjectNotFound(http_exc=Exception("wiped"))

    monkeypatch.setattr(terminal, "_run_flow", refused)
    monkeypatch.setattr(foreground, "leave", void)
    assert terminal.watch_in_terminal(path) == 0
    said = capsys.readouterr().out
    assert "its records of this run are incomplete" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("was_on", [True, False])
def test_while_prefect_is_imported_nothing_is_collected_and_afterwards_it_is_as_before(
    was_on: bool,
) -> None:
    begun: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        begun.append(info["generation"])

    gc.callbacks.append(note)
    try:
        if not was_on:
            gc.disable()
        with suppress(ImportError), processes.without_collections():
            begun.clear()
            assert len([[] for _ in range(100_000)]) == 100_000
            assert begun == []
            raise ImportError("an import that fails")
        assert gc.isenabled() is was_on
    finally:
        gc.callbacks.remove(note)
        gc.enable()
