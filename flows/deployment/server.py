"""The Prefect server: the one that Prefect's settings name, or an embedded one for a first try.

The embedded one is a `prefect server start` of its own, not Prefect's ephemeral mode, which drops
task runs under load, shows no UI, and dies of a Ctrl-C before the flow run's last state is sent.
"""

import atexit
import ctypes
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from autoexp import proxies
from autoexp.errors import AutoexpError
from autoexp.flows.deployment.server_checks import HOST, answers, is_local

# What Prefect's migrations (alembic) say of a database whose last step they do not know.
_OTHER_VERSION = b"Can't locate revision identified by"
_LOG_END = 16384
_LINES_SHOWN = 5
_PATIENCE_S = 180.0
_PR_SET_PDEATHSIG = 1
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# The text of whatever Prefect warns of may stand in front of it.
_MARK = "PREFECT_API_URL="


# Which server


def configured_url() -> str | None:
    """URL of the server that Prefect's settings name: by variable, .env, prefect.toml, profile.

    Prefect itself reads them, in a process of its own: the settings that it finds at its import are
    those of the whole process, and the embedded server has yet to come. Raises AutoexpError when
    the settings cannot be read.
    """
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    if not _may_be_configured():
        return None
    ask = f"from prefect.settings import PREFECT_API_URL as u; print('{_MARK}', u.value() or '')"
    answer = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    _, found, url = answer.stdout.rpartition(_MARK)
    if answer.returncode != 0 or not found:
        output = answer.stderr.strip().splitlines() or ["no answer"]
        raise AutoexpError(
            f"Prefect's settings cannot be read ({output[-1].strip()[:300]}); "
            "`prefect config view` says where they are from"
        )
    return url.strip() or None


def _may_be_configured() -> bool:
    """True if a source of settings may name a server; asking Prefect takes a second or two."""
    if any(os.environ.get(name) for name in ("PREFECT_PROFILE", "PREFECT_PROFILES_PATH")):
        return True
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    return (
        _mentions(Path(".env"), "prefect_")
        or _mentions(Path("prefect.toml"), "")
        or _mentions(Path("pyproject.toml"), "tool.prefect")
        or _mentions(home / "profiles.toml", "prefect_api_url")
    )


def _mentions(path: Path, word: str) -> bool:
    try:
        return word in path.read_text(errors="replace").lower()
    except OSError:
        return path.is_file()  # Prefect says why it cannot be read


# Proxies


def bypass_proxies() -> None:
    """Bypass proxies for this machine's own servers, in this process and all that it starts.

    A proxy stands elsewhere, where `127.0.0.1` is another machine. Prefect's client, curl and
    others read both spellings of the variable.
    """
    named = urllib.request.getproxies_environment()
    if not any(value for name, value in named.items() if name != "no"):
        return
    known = [host.strip() for host in named.get("no", "").split(",") if host.strip()]
    if "*" not in known:
        known += [host for host in _LOOPBACK if host not in known]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(known)
    if proxies.is_in_the_way() and _is_near():
        proxies.hide()


def _is_near() -> bool:
    """True if the server is on this machine; unreadable settings are reported by Prefect later."""
    try:
        url = configured_url()
    except AutoexpError:
        return False
    return url is None or is_local(url)


# The embedded one


def embedded_server(folder: Path) -> "Server | None":
    """Start a server, unless Prefect's settings name one; it ends after everything else in here.

    To be called before Prefect is imported: what Prefect registers for the interpreter's exit then
    runs before the server is stopped, and the last events and log lines still reach it.
    """
    if configured_url() is not None:
        return None
    server = Server(folder)
    atexit.register(server.stop)
    return server


class Server:
    """A Prefect server with a lock of its own, which starts while its user goes on.

    While nobody asks it anything it stands still (autoexp/flows/deployment/dormancy.py), and the
    next connection has it go on. `folder` holds its output and, while it runs and for its owner
    alone, the string that opens it.
    """

    def __init__(self, folder: Path) -> None:
        self._log = folder / "prefect-server.log"
        self.login = folder / "prefect-login"
        self.auth_string = new_auth_string()
        write_private(self.login, f"{self.auth_string}\n")
        self._socket = bound_socket(0)
        self.url = f"http://{HOST}:{self._socket.getsockname()[1]}"
        self.visits, tell = os.pipe()
        """Where it says that somebody looks at it, or has set a state (concurrency/visits.py)."""
        os.set_blocking(self.visits, False)
        os.set_blocking(tell, False)
        self._stopping, self._stop = os.pipe()
        self._process = start_server(
            self._socket, self.auth_string, self._log, tell, preexec_fn=end_with_parent
        )
        os.close(tell)
        threading.Thread(target=self._attend, daemon=True, name="server").start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _attend(self) -> None:
        """Have the server go on whenever somebody connects; refuse connections once it is gone."""
        while self._stands_still():
            select.select([self._socket.fileno(), self._stopping], [], [])
            self._go_on()
        self._process.wait()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _stands_still(self) -> bool:
        """Wait until the server has stopped itself; False: it has ended."""
        with suppress(ChildProcessError):  # somebody else has waited for its end
            # The end itself is left for `Popen.wait`.
            seen = os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            if seen is not None and seen.si_code == os.CLD_STOPPED:
                os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG)
                return True
        return False

    def _go_on(self) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGCONT)

    def wait(self) -> None:
        """Wait until it answers; raises AutoexpError with its log when it does not."""
        who = "the embedded Prefect server"
        await_answer(self._process, f"{self.url}/api", self.auth_string, who, self._log)

    def stop(self) -> None:
        """End it, and wait until it has written all it holds."""
        self._process.terminate()
        os.close(self._stop)  # from now on it is not left standing
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._socket.close()
        self.login.unlink(missing_ok=True)


def await_answer(
    process: "subprocess.Popen[str] | subprocess.Popen[bytes]",
    url: str,
    auth_string: str,
    who: str,
    log: Path,
) -> None:
    """Wait until a server that was started answers; raises AutoexpError with its log if not."""
    deadline = time.monotonic() + _PATIENCE_S
    while not answers(url, auth_string):
        if (code := process.poll()) is not None:
            raise AutoexpError(f"{who} did not start (exit {code}){_reason(log)}; read {log}")
        if time.monotonic() > deadline:
            raise AutoexpError(f"{who} does not answer{_reason(log)}; read {log}")
        time.sleep(0.1)


def _reason(log: Path) -> str:
    """The reason why a server did not start, if it is a known one; else the end of its log."""
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_END))
        end = file.read()
        if _OTHER_VERSION in end:
            home = os.environ.get("PREFECT_HOME") or "~/.prefect"
            return (
                f": the database in {home} is of a newer Prefect than this one. Upgrade this one, "
                "or give it a directory of its own: `export PREFECT_HOME=~/.prefect-older`"
            )
        lines = [line for line in end.decode(errors="replace").splitlines() if line.strip()]
        if lines:
            return "; its log ends:\n  " + "\n  ".join(lines[-_LINES_SHOWN:]) + "\n"
    return ""


def new_auth_string() -> str:
    """A random authentication string in Prefect's form, `user:password`."""
    return f"autoexp:{secrets.token_urlsafe(32)}"


def bound_socket(port: int, host: str = HOST) -> socket.socket:
    """A socket on a loopback address alone, at a port that is free if 0; raises OSError."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        if port:  # what a server has just left
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


def start_server(
    bound: socket.socket,
    auth_string: str,
    log: Path,
    visits: int | None = None,
    preexec_fn: Callable[[], None] | None = None,
) -> "subprocess.Popen[bytes]":
    """Start a Prefect server behind a lock on a socket; its output goes to `log`.

    With a pipe to say who looks at it, it stands still while nobody does.
    """
    kept = [bound.fileno(), *([] if visits is None else [visits])]
    host, own_port = bound.getsockname()[:2]
    url = f"http://[{host}]:{own_port}" if ":" in host else f"http://{host}:{own_port}"
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "autoexp.flows.deployment.serve", *map(str, kept)],
            env={
                **os.environ,
                **_settings(url, auth_string),
                **(_RESTING if visits is not None else {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            pass_fds=kept,
            # Ctrl-C is for the monitor; the server has to take its last states.
            start_new_session=True,
            preexec_fn=preexec_fn,
        )


def write_private(path: Path, text: str) -> None:
    """Replace a file by one that its owner alone can read, whatever the umask."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    temporary.replace(path)


def _settings(url: str, auth_string: str) -> dict[str, str]:
    return {
        "PREFECT_API_URL": f"{url}/api",
        "PREFECT_API_AUTH_STRING": auth_string,
        "PREFECT_SERVER_API_AUTH_STRING": auth_string,
        "PREFECT_UI_API_URL": f"{url}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }


_RESTING = {
    # Events are on disk before the server comes to rest.
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "1",
    # For deployments and their workers, which a session in the foreground has none of.
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_FOREMAN_ENABLED": "false",
}


def end_with_parent(signum: int = signal.SIGTERM) -> None:
    """Send this process a signal when the thread that started it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signum)
