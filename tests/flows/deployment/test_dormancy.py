"""An embedded server stands still while nobody asks it anything, and nobody notices."""

import asyncio
import os
import select
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from autoexp.flows.concurrency.visits import CHANGED, LOOKED, OWN_HEADER
from autoexp.flows.deployment import dormancy, embedded
from autoexp.flows.deployment.dormancy import Dormancy
from autoexp.flows.deployment.server_lock import Scope, token
from tests.flows.prefect_home import prefect_home
from tests.patience import until
from tests.processes import stands_still, state

# Starts a server, says its process, and lives until it is killed.
STARTER = """
import sys, time
from pathlib import Path
from autoexp.flows.deployment.embedded import Server
server = Server(Path(sys.argv[1]))
server.wait()
print(server.pid, flush=True)
time.sleep(3600)
"""


def ask(
    found: embedded.Server, path: str, auth: str = "", body: bytes | None = None, own: bool = False
) -> int:
    """The status of the answer to a request."""
    headers = {"Authorization": token(auth or found.auth_string), "Connection": "close"}
    if own:
        headers[OWN_HEADER] = "1"
    asked = urllib.request.Request(f"{found.url}{path}", headers=headers, data=body)
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def told(found: embedded.Server, within_s: float = 0.0) -> bytes:
    """What the server has said since the last call."""
    select.select([found.visits], [], [], within_s)
    with suppress(BlockingIOError):
        return os.read(found.visits, 4096)
    return b""


@pytest.fixture(scope="module")
def resting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded.Server]:
    """The embedded server of `autoexp run`, with a home of its own."""
    folder = tmp_path_factory.mktemp("resting")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(prefect_home(folder)))
        patch.delenv("PREFECT_API_URL", raising=False)
        found = embedded.Server(folder)
    try:
        found.wait()
        yield found
    finally:
        found.stop()


@pytest.mark.prefect
def test_a_server_that_nobody_asks_stands_still_until_the_next_request(
    resting: embedded.Server,
) -> None:
    for _ in range(2):
        until(lambda: stands_still(resting.pid), "a server that stands still")
        assert ask(resting, "/api/health") == 200
        assert not stands_still(resting.pid)


@pytest.mark.prefect
def test_a_server_that_stands_still_lets_nobody_in_without_the_string(
    resting: embedded.Server,
) -> None:
    until(lambda: stands_still(resting.pid), "a server that stands still")
    told(resting)
    assert ask(resting, "/api/admin/version", auth="autoexp:guessed") == 401
    assert told(resting) == b""


@pytest.mark.prefect
def test_the_starter_is_told_of_visitors_and_of_states_they_set_but_not_of_itself(
    resting: embedded.Server,
) -> None:
    until(lambda: stands_still(resting.pid), "a server that stands still")
    told(resting)
    assert ask(resting, "/api/admin/version", own=True) == 200
    assert told(resting) == b""
    assert ask(resting, "/api/admin/version") == 200
    assert told(resting, 60) == LOOKED
    unknown = "/api/flow_runs/00000000-0000-0000-0000-000000000000/set_state"
    ask(resting, unknown, body=b"{}")
    assert CHANGED in told(resting, 60)


@pytest.mark.prefect
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_that_stands_still_ends_with_its_starter(signum: int, tmp_path: Path) -> None:
    environment = {**os.environ, "PREFECT_HOME": str(prefect_home(tmp_path))}
    environment.pop("PREFECT_API_URL", None)
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(tmp_path)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    until(lambda: stands_still(pid), "a server that stands still")
    starter.send_signal(signum)
    starter.wait(60)
    until(lambda: state(pid) in ("", "Z"), "the end of the server")


@pytest.mark.prefect
def test_a_server_that_stands_still_is_stopped_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(prefect_home(tmp_path)))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    found = embedded.Server(tmp_path)
    found.wait()
    until(lambda: stands_still(found.pid), "a server that stands still")
    found.stop()
    assert state(found.pid) == ""
    assert not found.login.exists()


@pytest.mark.prefect
def test_a_server_that_stands_still_holds_no_compiled_code(resting: embedded.Server) -> None:
    until(lambda: stands_still(resting.pid), "a server that stands still")
    at_rest = compiled_kb(resting.pid)
    assert ask(resting, "/api/admin/version") == 200
    assert compiled_kb(resting.pid) > 2 * at_rest


def compiled_kb(pid: int) -> int:
    """What a process holds of the code in files."""
    found, is_code = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0]:
            is_code = words[1] == "r-xp" and words[4] != "0"
        elif words[0] == "Rss:" and is_code:
            found += int(words[1])
    return found


# When it stops


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(dormancy.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Signals that a process sends itself."""
    sent: list[int] = []
    monkeypatch.setattr(dormancy.os, "kill", lambda pid, signum: sent.append(signum))
    monkeypatch.setattr(dormancy, "end_with_parent", lambda *_: None)
    monkeypatch.setattr(dormancy, "is_connected", lambda port: False)

    async def idle() -> bool:
        return False

    monkeypatch.setattr(dormancy, "uses_database", idle)
    return sent


async def request(front: Dormancy, own: bool = True) -> None:
    headers = [(OWN_HEADER.lower().encode(), b"1")] if own else []
    scope = {"type": "http", "method": "GET", "path": "/", "headers": headers}
    await front(scope, None, None)  # type: ignore[arg-type]


def in_front_of(app: Any = None) -> Dormancy:
    async def answers(scope: Scope, receive: Any, send: Any) -> None:
        pass

    return Dormancy(app or answers, 4200, os.open(os.devnull, os.O_WRONLY))


async def test_it_goes_on_for_a_while_after_a_report_and_longer_after_a_visit(
    clock: list[float], stops: list[int]
) -> None:
    front = in_front_of()
    await front.stop_when_quiet()
    assert stops == []  # nobody has had an answer yet
    await request(front)
    await front.stop_when_quiet()
    assert stops == []
    clock[0] += 5
    await front.stop_when_quiet()
    assert stops == [signal.SIGSTOP]
    await request(front, own=False)
    clock[0] += 5
    await front.stop_when_quiet()
    assert stops == [signal.SIGSTOP]
    clock[0] += 15
    await front.stop_when_quiet()
    assert stops == [signal.SIGSTOP] * 2


async def test_it_does_not_stop_while_a_request_is_under_way(
    clock: list[float], stops: list[int]
) -> None:
    may_end = asyncio.Event()

    async def slow(scope: Scope, receive: Any, send: Any) -> None:
        await may_end.wait()

    front = in_front_of(slow)
    under_way = [asyncio.create_task(request(front)) for _ in range(2)]
    await asyncio.sleep(0)
    clock[0] += 3600
    await front.stop_when_quiet()
    may_end.set()
    await asyncio.gather(*under_way)
    assert stops == []
    clock[0] += 3600
    await front.stop_when_quiet()
    assert stops == [signal.SIGSTOP]


@pytest.mark.parametrize("what", ["uses_database", "is_connected"])
async def test_it_does_not_stop_with_a_transaction_or_a_connection_open(
    what: str, clock: list[float], stops: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others write to the same database; what comes over an open connection nobody would see."""

    async def open_transaction() -> bool:
        return True

    front = in_front_of()
    await request(front)
    busy: Any = open_transaction if what == "uses_database" else lambda port: True
    monkeypatch.setattr(dormancy, what, busy)
    clock[0] += 3600
    await front.stop_when_quiet()
    assert stops == []
