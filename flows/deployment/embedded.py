"""The embedded Prefect server of `autoexp run`: one for all sessions of a user in the foreground.

The first session starts its keeper (autoexp/flows/deployment/keeper.py), the others become members
by a socket, and the last one to leave ends both. It is a server of its own, not Prefect's ephemeral
mode, which drops task runs under load, shows no UI, and dies of a Ctrl-C before the flow run's last
state is sent.
"""

import atexit
import gc
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from autoexp import __version__
from autoexp.errors import AutoexpError
from autoexp.flows.concurrency import memory
from autoexp.flows.concurrency.visits import ENDED
from autoexp.flows.deployment import keeper, sockets
from autoexp.flows.deployment.server import (
    COMMAND,
    await_answer,
    configured_url,
    end_with_parent,
    may_be_configured,
    new_auth_string,
    open_log,
    settings,
    socket_of_its_own,
    write_private,
)
from autoexp.flows.deployment.server_checks import HOST
from autoexp.storage import atomic, locks, processes

_LARGEST = 4096
# A keeper comes once its first session has imported Prefect, on a machine that may be busy.
_ANSWERS_WITHIN_S = 90.0
_LOCK_PATIENCE_S = 240.0
# Those who have lost their keeper start another one at once, unless they are stopped (Ctrl-Z).
_REVIVAL_S = 3.0
_LEAST_LIFE_S = 60.0
_LEAVES_WITHIN_S = 15.0
_LARGEST_LOG = 1 << 20
# Settings of a server: sessions that differ in them do not share one.
_OF_SERVERS = ("PREFECT_SERVER_", "PREFECT_API_DATABASE_", "PREFECT_UI_", "PREFECT_PROFILE")
_RESTING = {
    # Events are on disk before the server comes to rest.
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "1",
    # For deployments and their workers, which a session in the foreground has none of.
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_FOREMAN_ENABLED": "false",
}


def embedded_server(folder: Path) -> "Server | None":
    """Share the embedded server, unless Prefect's settings name one; left after all else in here.

    To be called before Prefect is imported: what Prefect registers for the interpreter's exit then
    runs before the server is left, and the last events and log lines still reach it.
    """
    if configured_url() is not None:
        return None
    server = Server(folder)
    atexit.register(server.stop)
    return server


class _Place(NamedTuple):
    """Files of the server that sessions of one kind share; the kind is in their names."""

    lock: Path
    state: Path
    log: Path

    @classmethod
    def of_this_process(cls) -> "_Place":
        home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
        folder, kind = home.absolute() / "autoexp", _kind()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise AutoexpError(
                f"{folder}: {error.strerror}; Prefect's server needs a directory that can be "
                "written: `export PREFECT_HOME=DIRECTORY`"
            ) from error
        return cls(*(folder / f"server-{kind}.{end}" for end in ("lock", "json", "log")))


def _kind() -> str:
    """What a server that is shared has to have in common, as a word."""
    mine = processes.own_identity()
    words = [
        # 127.0.0.1 is another one on another host, and in another network namespace.
        *(str(mine[name]) for name in ("host", "host_id")),
        os.readlink("/proc/self/ns/net"),  # noqa: PTH115
        *(sys.prefix, str(Path(__file__).resolve()), version("prefect"), __version__),
        *sorted(
            f"{name}={value}"
            for name, value in os.environ.items()
            if name.startswith(_OF_SERVERS) and "AUTH_STRING" not in name
        ),
        # Prefect reads settings from the working directory, too.
        str(Path.cwd()) if may_be_configured() else "",
    ]
    return sha256("\0".join(words).encode()).hexdigest()[:12]


class _Seat(NamedTuple):
    """A membership: the line to the keeper, and the socket at which the server is asked."""

    line: socket.socket
    listener: socket.socket
    auth_string: str


class _Opening(NamedTuple):
    """What a keeper that is yet to be started is given."""

    gate: socket.socket
    first: socket.socket
    pipe: tuple[int, int]

    def close(self) -> None:
        self.gate.close()
        self.first.close()
        for descriptor in self.pipe:
            os.close(descriptor)


class Server:
    """A session's share in the embedded server, which starts, or runs already, meanwhile.

    While nobody asks it anything the server stands still (autoexp/flows/deployment/dormancy.py),
    and the next connection has it go on. `folder` holds, while the session is a member and for its
    owner alone, the string that opens it. The server's socket is this process's as well: nobody
    else can take its port for as long as a session lives, whatever becomes of server and keeper.
    """

    def __init__(self, folder: Path) -> None:
        self.login = folder / "prefect-login"
        self._place = _Place.of_this_process()
        self._environment = dict(os.environ)
        self._opening: _Opening | None = None
        self._keeper = 0
        self._seat = self._enter()
        self.auth_string = self._seat.auth_string
        self.url = _url_of(self._seat.listener)
        self._settings = {**settings(self.url, self.auth_string), **_RESTING}
        write_private(self.login, f"{self.auth_string}\n")
        self.visits, self._tell = os.pipe()
        """Where it says that somebody looks at it, or has set a state (concurrency/visits.py)."""
        os.set_blocking(self.visits, False)
        os.set_blocking(self._tell, False)
        self._has_ended = False
        self._is_stopping = threading.Event()
        self._attending: threading.Thread | None = None

    def start(self) -> None:
        """Start it, unless it runs already."""
        if self._opening is not None:
            self._run_keeper(self._opening)
        if self._attending is None:
            self._attending = threading.Thread(target=self._attend, daemon=True, name="server")
            self._attending.start()

    def start_sharing_memory(self) -> None:
        """Start it, unless it runs already, as a copy of this process once Prefect is imported.

        To be called before there are other threads, which no copy would have, and before Prefect is
        imported otherwise: it keeps the settings that it finds then.
        """
        if self._opening is not None:
            with _in_environment(self._settings):
                with processes.without_collections():
                    import_shared()
                if len(list(Path("/proc/self/task").iterdir())) == 1:
                    self._fork_server(self._opening)
        self.start()

    @property
    def log(self) -> Path:
        """The output of the server."""
        return self._place.log

    @property
    def pid(self) -> int:
        """The server's process; 0: there is none now, or another session has started it."""
        with suppress(OSError):
            path = Path(f"/proc/{self._keeper}/task/{self._keeper}/children")
            return int((path.read_text().split() or ["0"])[0])
        return 0

    def wait(self) -> None:
        """Wait until it answers; raises AutoexpError with its log when it does not."""
        self.start()
        who = "the embedded Prefect server"
        api = f"{self.url}/api"
        await_answer(lambda: "" if self._has_ended else None, api, self.auth_string, who, self.log)

    def stop(self) -> None:
        """Leave; the last one waits until the server has written all it holds and has ended."""
        self._is_stopping.set()
        if self._opening is not None:
            self._forget_opening(self._opening)  # nobody has been let in
        with suppress(OSError):
            self._seat.line.shutdown(socket.SHUT_WR)
        if self._attending is not None:
            self._attending.join(_LEAVES_WITHIN_S)
        self._seat.line.close()
        self._seat.listener.close()
        self.login.unlink(missing_ok=True)

    # The keeper

    def _attend(self) -> None:
        """Pass on what the keeper says; where it has died, go on with another one."""
        entered_at, has_begun_again = time.monotonic(), False
        while True:
            if news := _heard(self._seat.line):
                self._has_ended |= ENDED in news
                with suppress(OSError):  # enough is said already
                    os.write(self._tell, news)
                continue
            if self._keeper:
                with suppress(OSError):
                    os.waitpid(self._keeper, os.WNOHANG)
            if self._is_stopping.is_set():
                return
            if time.monotonic() - entered_at < _LEAST_LIFE_S:
                # Whatever ends it at once, again and again, is not worth a loop.
                self._is_stopping.wait(_LEAST_LIFE_S if has_begun_again else 0.0)
            has_begun_again = True
            entered_at = time.monotonic()
            if self._is_stopping.is_set() or not self._enter_again():
                break
            if self._is_stopping.is_set():  # in the meantime
                with suppress(OSError):
                    self._seat.line.shutdown(socket.SHUT_WR)
        with suppress(OSError):
            self._seat.listener.shutdown(socket.SHUT_RDWR)  # refused at once; the port stays taken

    def _enter(self) -> _Seat:
        """Become a member: of the keeper that is there, or of one that is started."""
        give_up_at = time.monotonic() + _REVIVAL_S
        while True:
            with self._alone():
                if (seat := _join(self._place)) is not None:
                    return seat
                if time.monotonic() > give_up_at or not _is_held(self._place):
                    seat, self._opening = self._open(socket_of_its_own(), new_auth_string())
                    return seat
            time.sleep(0.05)

    def _enter_again(self) -> bool:
        """Become a member of another keeper with the same socket, started by whoever is first.

        False where others have begun anew at another port: this session goes on without a server.
        """
        try:
            with self._alone():
                seat = _join(self._place)
                if seat is None:
                    seat, opening = self._open(self._seat.listener, self.auth_string)
                    self._run_keeper(opening)
        except (AutoexpError, OSError):
            return False
        is_same = _url_of(seat.listener) == self.url
        if seat.listener is not self._seat.listener:
            seat.listener.close()
        (self._seat if is_same else seat).line.close()
        if is_same:
            self._seat = self._seat._replace(line=seat.line)
        return is_same

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock under which a keeper is looked for and started."""
        try:
            with locks.exclusively(self._place.lock, _LOCK_PATIENCE_S):
                yield
        except locks.Busy:
            raise AutoexpError(
                f"{self._place.lock}: another session has been starting Prefect's server for "
                f"{_LOCK_PATIENCE_S:.0f} s; end it (`fuser` names it), then try again"
            ) from None

    def _open(self, listener: socket.socket, auth_string: str) -> tuple[_Seat, _Opening]:
        """Have others wait for a keeper of this socket, with this session as its first member."""
        name = f"autoexp-{secrets.token_hex(8)}"
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        gate = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        gate.bind(f"\0{name}")  # the kernel's own, of no filesystem
        gate.listen()
        state = {"socket": name, "port": listener.getsockname()[1]}
        write_private(self._place.state, json.dumps(state) + "\n")
        return _Seat(mine, listener, auth_string), _Opening(gate, its, os.pipe())

    def _open_log(self) -> int:
        with suppress(OSError):
            if self.log.stat().st_size > _LARGEST_LOG:
                self.log.unlink()
        return open_log(self.log)

    def _run_keeper(self, opening: _Opening) -> None:
        """Start the keeper, which starts a server that imports all anew."""
        with os.fdopen(self._open_log(), "ab") as log:
            process = subprocess.Popen(
                self._keeper_command(opening),
                env={**self._environment, **self._settings},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=self._kept(opening),
                # Ctrl-C is for the monitor; the server has to take its last states.
                start_new_session=True,
            )
        self._keeper = process.pid
        self._forget_opening(opening)

    def _kept(self, opening: _Opening) -> list[int]:
        sockets = (self._seat.listener, opening.gate, opening.first)
        return [*(each.fileno() for each in sockets), *opening.pipe]

    def _keeper_command(self, opening: _Opening, server: int = 0) -> list[str]:
        words = map(str, (*self._kept(opening), server))
        return [sys.executable, "-I", "-S", keeper.__file__, *words, *COMMAND]

    def _fork_server(self, opening: _Opening) -> None:
        """Fork the server, which shares with us what is imported by now, below its keeper."""
        log = self._open_log()
        memory.give_back()
        gc.freeze()  # a collection would write into all that is shared
        sys.stdout.flush()
        sys.stderr.flush()
        self._keeper = os.fork()
        if self._keeper == 0:
            try:
                self._become_keeper(opening, log)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        os.close(log)
        self._forget_opening(opening)

    def _become_keeper(self, opening: _Opening, log: int) -> None:
        """In a copy of this process: begin anew as the keeper, once the server is forked."""
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for standard in (1, 2):
            os.dup2(log, standard)
        _keep_only(self._kept(opening))
        mine = os.getpid()
        server = os.fork()
        if server == 0:
            end_with_parent()
            if os.getppid() != mine:
                return
            serve = (self._seat.listener.fileno(), opening.pipe[1])
            _keep_only(serve)
            _serve_here(*serve)
            return
        for descriptor in self._kept(opening):
            os.set_inheritable(descriptor, True)
        environment = {**self._environment, **self._settings}
        os.execve(sys.executable, self._keeper_command(opening, server), environment)

    def _forget_opening(self, opening: _Opening) -> None:
        opening.close()
        self._opening = None


@contextmanager
def _in_environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def import_shared() -> None:
    """Import what a session and the server both need."""
    import prefect.artifacts
    import prefect.events
    import prefect.flows  # noqa: F401


def _serve_here(listener: int, starter: int) -> None:
    """Serve in this process, which was forked."""
    from autoexp.flows.deployment import serve

    keeper.name_process(keeper.SERVER)
    serve.main(listener, starter)


def _keep_only(descriptors: Iterable[int]) -> None:
    """Give up all files but these and the standard ones, in a process that was forked.

    Their numbers stay taken: an object of the parent's that still ends here closes nothing else.
    """
    kept = {0, 1, 2, *descriptors}
    nothing = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with suppress(OSError):  # that of the listing
            if (descriptor := int(name)) not in kept:
                os.fstat(descriptor)
                os.dup2(nothing, descriptor, inheritable=False)


def _join(place: _Place) -> _Seat | None:
    """Become a member of the keeper that is there; None: there is none, or it is about to end."""
    line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    received: list[int] = []
    try:
        name = str(_known(place)["socket"])
        line.settimeout(_ANSWERS_WITHIN_S)
        line.connect(f"\0{name}")
        # Whoever has taken the name of a keeper that died is nobody to trust.
        if keeper.uid_of(line) == os.geteuid():
            auth_string, received, _, _ = socket.recv_fds(line, _LARGEST, 1)
            if received and auth_string:
                line.settimeout(None)
                listener = socket.socket(fileno=received.pop())
                return _Seat(line, listener, auth_string.decode())
    except (OSError, ValueError, KeyError):
        pass
    line.close()
    return None


def _is_held(place: _Place) -> bool:
    """True while sessions of this user wait at the port of a keeper that has died."""
    try:
        return os.geteuid() in sockets.listeners(int(_known(place)["port"]))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _known(place: _Place) -> dict[str, Any]:
    found = json.loads(atomic.read(place.state, _LARGEST))
    if not isinstance(found, dict):
        raise ValueError(place.state)
    return found


def _heard(line: socket.socket) -> bytes:
    try:
        return line.recv(_LARGEST)
    except OSError:
        return b""


def _url_of(listener: socket.socket) -> str:
    return f"http://{HOST}:{listener.getsockname()[1]}"
