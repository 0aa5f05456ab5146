"""The embedded Prefect server: for a first try without a server of one's own.

With PREFECT_API_URL set, or any Prefect profile on disk, that server is used instead. The
embedded one is a `prefect server start` of its own, not Prefect's ephemeral mode, which drops
task runs under load, shows no UI, and dies of a Ctrl-C before the flow run's last state is sent.
"""

import atexit
import ctypes
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from autoexp.errors import AutoexpError

_PATIENCE_S = 180.0
_PR_SET_PDEATHSIG = 1


def is_configured() -> bool:
    """Whether the user has told Prefect which server to talk to."""
    if os.environ.get("PREFECT_API_URL"):
        return True
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    profiles = home / "profiles.toml"
    return profiles.exists() and "PREFECT_API_URL" in profiles.read_text()


def embedded_server(log: Path) -> "Server":
    """Start a server on a free port of this machine; it ends after everything else in here.

    To be called before Prefect is imported: what Prefect registers for the interpreter's exit then
    runs before the server is stopped, and the last events and log lines still reach it.
    """
    server = Server(log)
    atexit.register(server.stop)
    return server


class Server:
    """A Prefect server that starts while its user goes on; its output goes to `log`."""

    def __init__(self, log: Path) -> None:
        self._log = log
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)],
                env={**os.environ, **_settings(self.url)},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for the monitor; the server has to take its last states.
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def wait(self) -> None:
        """Wait until it answers; raises AutoexpError with its log when it does not."""
        deadline = time.monotonic() + _PATIENCE_S
        while not answers(f"{self.url}/api"):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AutoexpError(f"the embedded Prefect server did not start; read {self._log}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End it, and wait until it has written what it holds."""
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def answers(api_url: str) -> bool:
    """Whether a Prefect server answers; one that wants to know who asks, or to be asked else, does.

    Prefect Cloud has no page for its health.
    """
    try:
        with urllib.request.urlopen(f"{api_url}/health", timeout=3) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        return error.code < 500
    except (OSError, http.client.HTTPException):
        return False


def _settings(url: str) -> dict[str, str]:
    return {
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_UI_API_URL": f"{url}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
