"""The Prefect server: which one Prefect's settings name, and how one of our own is started."""

import ctypes
import errno
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
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
_TRIES = 10
COMMAND = (sys.executable, "-m", "autoexp.flows.deployment.serve")
"""Starts a server; the descriptor of its socket follows."""
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
    if not may_be_configured():
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


def may_be_configured() -> bool:
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


# Starting one


def await_answer(
    ended: Callable[[], str | None], url: str, auth_string: str, who: str, log: Path
) -> None:
    """Wait until a server that was started answers; raises AutoexpError with its log if not.

    `ended()` says how it has ended, in words that may be none; None while it has not.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while not answers(url, auth_string):
        if (how := ended()) is not None:
            raise AutoexpError(f"{who} did not start{how}{_reason(log)}; read {log}")
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
    """A socket on a loopback address alone, also where one has just been left; raises OSError."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


def socket_of_its_own() -> socket.socket:
    """A socket at a free port, which nobody else gets while it is open; raises OSError.

    Bound by number: a port of the kernel's choice is free again once nobody listens at it. And not
    to be shared (SO_REUSEADDR), as one can be at which nobody listens.
    """
    for _ in range(_TRIES):
        with socket.socket() as chosen:
            chosen.bind((HOST, 0))
            port = chosen.getsockname()[1]
        bound = socket.socket()
        with suppress(OSError):  # somebody has just taken it
            bound.bind((HOST, port))
            return bound
        bound.close()
    raise OSError(errno.EADDRINUSE, "no port is free")


def open_log(path: Path) -> int:
    """Open the log of a server, for its owner alone, to write at its end."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def start_server(
    bound: socket.socket, auth_string: str, log: Path, more: Mapping[str, str] | None = None
) -> "subprocess.Popen[bytes]":
    """Start a Prefect server behind a lock on a socket; its output goes to `log`.

    `more` are environment variables for it.
    """
    host, port = bound.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    with os.fdopen(open_log(log), "ab") as file:
        return subprocess.Popen(
            [*COMMAND, str(bound.fileno())],
            env={**os.environ, **settings(url, auth_string), **(more or {})},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            pass_fds=[bound.fileno()],
            # Ctrl-C is for who started it.
            start_new_session=True,
        )


def write_private(path: Path, text: str) -> None:
    """Replace a file by one that its owner alone can read, whatever the umask."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    temporary.replace(path)


def settings(url: str, auth_string: str) -> dict[str, str]:
    """Environment variables of a server behind a lock at this URL."""
    return {
        "PREFECT_API_URL": f"{url}/api",
        "PREFECT_API_AUTH_STRING": auth_string,
        "PREFECT_SERVER_API_AUTH_STRING": auth_string,
        "PREFECT_UI_API_URL": f"{url}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }


def end_with_parent(signum: int = signal.SIGTERM) -> None:
    """Send this process a signal when the thread that started it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signum)
