"""Sessions in the foreground share one embedded server, whatever is killed in between.

Sessions and keepers are real processes; most tests put a small program in the place of Prefect's
server, which takes half a minute to start on a busy machine.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from autoexp.flows.deployment import embedded, keeper, server, server_checks, sockets
from autoexp.flows.deployment.server_lock import token
from tests.patience import PATIENCE_S, until
from tests.processes import stands_still, state

# Answers with its process, says that it has started, and stands still where it is asked to.
SERVER = """
import os, signal, socket, sys
listener, starter = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
listener.listen()
os.write(starter, b"s")
while True:
    asker, _ = listener.accept()
    path = asker.recv(65536).split()[1]
    body = b"true" if path.endswith(b"health") else b"%d" % os.getpid()
    asker.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\n" + body)
    asker.close()
    if path == b"/look":
        os.write(starter, b"l")
    if path == b"/rest":
        os.kill(os.getpid(), signal.SIGSTOP)
"""
# A session's part in it: prints what it has, then what it hears, until its input ends.
SESSION = """
import os, select, sys, threading, time
from pathlib import Path
from autoexp.flows.deployment import embedded, keeper
folder = Path(sys.argv[1])
folder.mkdir()
program, is_forked = sys.argv[2:]
command = [sys.executable, "-I", "-S", "-c", program]
embedded.COMMAND = command
embedded.import_shared = lambda: None
def serve(*descriptors):
    sys.argv[1:] = map(str, descriptors)
    keeper.name_process(keeper.SERVER)
    exec(program, {})
embedded._serve_here = serve
mine = embedded.Server(folder)
if is_forked == "threaded":
    threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
if is_forked != "executed":
    mine.start_sharing_memory()
mine.wait()
print(mine.url, mine.auth_string, flush=True)
heard = b""
while True:
    ready, _, _ = select.select([0, mine.visits], [], [])
    if mine.visits in ready:
        heard += os.read(mine.visits, 4096)
        (folder / "heard").write_bytes(heard)
    if 0 in ready:
        break
mine.stop()
"""


class Member:
    """A process that is a session to the shared server."""

    def __init__(self, folder: Path, environment: dict[str, str], is_forked: str) -> None:
        self.folder = folder
        command = [sys.executable, "-c", SESSION, str(folder), SERVER, is_forked]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def begun(self) -> "Member":
        """Wait until the server answers it."""
        assert self.process.stdout is not None
        self.url, self.auth_string = self.process.stdout.readline().split()
        return self

    def ask(self, path: str = "/") -> int:
        """The process of the server that answers."""
        asked = urllib.request.Request(
            f"{self.url}{path}", headers={"Authorization": token(self.auth_string)}
        )
        with urllib.request.urlopen(asked, timeout=PATIENCE_S) as answer:
            return int(answer.read())

    @property
    def heard(self) -> bytes:
        with suppress(OSError):
            return (self.folder / "heard").read_bytes()
        return b""

    @property
    def login(self) -> Path:
        return self.folder / "prefect-login"

    def leave(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(PATIENCE_S) == 0

    def kill(self, signum: int = signal.SIGKILL) -> None:
        self.process.send_signal(signum)
        self.process.wait(PATIENCE_S)


class Home:
    """A user's Prefect directory, and the sessions that use it."""

    def __init__(self, path: Path, is_forked: str) -> None:
        self.path = path
        self._is_forked = is_forked
        self._members: list[Member] = []

    def start(self, **variables: str) -> Member:
        environment = {**os.environ, "PREFECT_HOME": str(self.path), **variables}
        environment.pop("PREFECT_API_URL", None)
        folder = self.path / f"session{len(self._members)}"
        self._members.append(Member(folder, environment, self._is_forked))
        return self._members[-1]

    @property
    def keepers(self) -> list[int]:
        """Keepers of this directory that are alive."""
        return [pid for pid in self._processes() if is_keeper(pid)]

    @property
    def keeper(self) -> int:
        """The one that there is, once it has begun: its server may answer before."""
        return int(until(lambda: len(found := self.keepers) == 1 and found[0], "one keeper"))

    @property
    def servers(self) -> list[int]:
        """Children of keepers that are alive."""
        return [pid for pid in self._processes() if is_keeper(parent_of(pid))]

    def _processes(self) -> Iterator[int]:
        mark = f"PREFECT_HOME={self.path}".encode()
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                environ = (entry / "environ").read_bytes() if entry.name.isdigit() else b""
                if mark in environ.split(b"\0") and state(int(entry.name)) != "Z":
                    yield int(entry.name)

    def end(self) -> None:
        for member in self._members:
            member.kill()


def command_of(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def parent_of(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def is_keeper(pid: int) -> bool:
    return command_of(pid).rstrip() == keeper.NAME


@pytest.fixture(params=["forked", "executed"])
def home(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Home]:
    """A directory whose server is the small program, and whose keepers come in one of both ways."""
    found = Home(tmp_path / "home", request.param)
    found.path.mkdir()
    yield found
    found.end()
    until(lambda: not found.servers and not found.keepers, "the end of server and keeper")


def test_sessions_share_one_server_which_the_last_one_ends(home: Home) -> None:
    started = [home.start() for _ in range(5)]
    members = [each.begun() for each in started]
    assert len({(each.url, each.auth_string) for each in members}) == 1
    assert home.keeper and len(home.servers) == 1
    assert {each.ask() for each in members} == set(home.servers)
    first, *others = members
    first.leave()
    assert not first.login.exists()
    assert others[0].ask() == home.servers[0]
    for other in others:
        assert other.login.read_text().strip() == other.auth_string
        assert other.login.stat().st_mode & 0o777 == 0o600
        other.leave()
    assert not home.servers  # whoever leaves last waits for it


@pytest.mark.parametrize("home", ["forked", "threaded"], indirect=True)
def test_a_server_is_forked_from_a_process_of_a_single_thread_alone(
    home: Home, request: pytest.FixtureRequest
) -> None:
    is_forked = request.node.callspec.params["home"] == "forked"
    server = home.start().begun().ask()
    assert (command_of(server).strip() == keeper.SERVER) is is_forked


def test_sessions_that_are_killed_keep_no_server(home: Home) -> None:
    first, second = (each.begun() for each in (home.start(), home.start()))
    first.kill()
    pid = second.ask("/rest")
    until(lambda: stands_still(pid), "a server that stands still")
    assert second.ask() == pid
    second.kill(signal.SIGTERM)
    until(lambda: not home.servers and not home.keepers, "the end of server and keeper")


def test_all_are_told_who_looks(home: Home) -> None:
    members = [each.begun() for each in (home.start(), home.start())]
    members[0].ask("/look")
    until(lambda: all(b"l" in each.heard for each in members), "both being told")


def test_a_server_that_was_killed_is_started_again_once_by_whoever_asks_next(home: Home) -> None:
    members = [each.begun() for each in [home.start() for _ in range(3)]]
    killed = members[0].ask()
    os.kill(killed, signal.SIGKILL)
    until(lambda: all(b"e" in each.heard for each in members), "all being told of its end")
    assert home.servers == []
    with ThreadPoolExecutor() as threads:
        (answered,) = set(threads.map(lambda each: each.ask(), members))
    assert answered != killed
    assert home.servers == [answered]


def test_a_keeper_that_was_killed_is_followed_by_one_with_the_same_port_and_login(
    home: Home,
) -> None:
    members = [each.begun() for each in [home.start() for _ in range(3)]]
    url, killed, old = members[0].url, members[0].ask(), home.keeper
    os.kill(old, signal.SIGKILL)
    until(lambda: old not in home.keepers and home.keepers, "another keeper")
    (answered,) = {each.ask() for each in members}
    assert answered != killed
    assert home.keeper and home.servers == [answered]
    late = home.start().begun()
    assert (late.url, late.auth_string) == (url, members[0].auth_string)
    for member in (*members, late):
        member.leave()
    assert not home.servers


def test_a_session_that_stands_still_holds_up_nobody_whose_keeper_was_killed(home: Home) -> None:
    still = home.start().begun()
    still.process.send_signal(signal.SIGSTOP)
    os.kill(home.keeper, signal.SIGKILL)
    until(lambda: not home.keepers, "the end of the keeper")
    other = home.start().begun()
    assert other.url != still.url
    still.process.send_signal(signal.SIGCONT)
    port = server_checks.port_of(still.url)
    until(lambda: not sockets.listeners(port), "a port at which nobody listens")
    until(lambda: home.servers == [other.ask()], "one server, the other's")
    # What opens a server is sent to this port by the session; it stays taken.
    with socket.socket() as somebody, pytest.raises(OSError, match="in use"):
        somebody.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        somebody.bind(("127.0.0.1", port))


def test_a_server_that_does_not_start_is_not_started_for_each_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (starts := tmp_path / "starts").touch()
    fails = f"open({str(starts)!r}, 'a').write('x')"
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setattr(embedded, "COMMAND", (sys.executable, "-I", "-S", "-c", fails))
    mine = embedded.Server(tmp_path)
    try:
        with pytest.raises(server.AutoexpError, match="did not start"):
            mine.wait()
        until(lambda: not sockets.listeners(server_checks.port_of(mine.url)), "a refusal")
        for _ in range(3):
            with pytest.raises(urllib.error.URLError, match="refused"):
                urllib.request.urlopen(mine.url, timeout=PATIENCE_S)
        assert starts.read_text() == "x"
    finally:
        mine.stop()


def test_sessions_that_set_a_server_otherwise_have_one_of_their_own(home: Home) -> None:
    database = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:///other.db"}
    members = [each.begun() for each in (home.start(), home.start(**database))]
    assert members[0].url != members[1].url
    until(lambda: len(home.servers) == 2, "two servers, each below its keeper")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_learns_nothing_at_the_keepers_door(home: Home) -> None:
    home.start().begun()
    (known,) = (home.path / "autoexp").glob("*.json")
    name = json.loads(known.read_text())["socket"]
    knock = (
        "import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET);"
        f"s.connect(chr(0) + {name!r}); print(s.recv(4096))"
    )
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    answer = subprocess.run(
        [*nobody, "/usr/bin/env", "python3", "-c", knock], capture_output=True, text=True, cwd="/"
    )
    assert answer.stdout.strip() == "b''", answer.stderr
    assert {path.stat().st_mode & 0o077 for path in (home.path / "autoexp").iterdir()} == {0}


def test_a_socket_that_nobody_listens_at_any_more_is_nobody_elses() -> None:
    with server.socket_of_its_own() as mine:
        mine.listen()
        mine.shutdown(socket.SHUT_RDWR)
        for reuse in (0, 1):
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
                other.bind(mine.getsockname())
        mine.listen()
        socket.create_connection(mine.getsockname()).close()
