"""The monitor of a drill, and the Prefect server that it brings: processes to be killed."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from autoexp.errors import AutoexpError
from autoexp.resources.node import read_proc
from autoexp.storage import processes

_KEEPER = b"autoexp-keeper"
"""What `ps` shows of the server's parent; it is named in flows/deployment/keeper.py."""
_INCOMPLETE = "records of this run are incomplete"
_ENDS_WITHIN_S = 30.0
_BEGINS_WITHIN_S = 120.0
_PREPARED_WITHIN_S = 900.0
_ANSWERS_WITHIN_S = 10.0


class Monitor:
    """`autoexp resume` in a process of its own, with a Prefect server that nobody else uses.

    Its Prefect directory is its own: what is killed here is nobody else's.
    """

    def __init__(self, session: Path, home: Path, log: Path) -> None:
        self._session, self._home, self._log = session, home, log
        self._process: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """Make Prefect's database, for which a server that starts has not the time on a busy host.

        What fails here is left to the server, which says why.
        """
        command = ["prefect", "server", "database", "upgrade", "-y"]
        with self._log.open("ab") as log, suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [sys.executable, "-m", *command],
                cwd=self._home,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=_PREPARED_WITHIN_S,
            )

    def _environment(self) -> dict[str, str]:
        # Whatever server Prefect's settings name, in variables or in files: it stays out of this.
        kept = {name: text for name, text in os.environ.items() if not name.startswith("PREFECT_")}
        own = {"PREFECT_HOME": str(self._home), "AUTOEXP_SESSIONS": str(self._session.parent)}
        return {**kept, **own, "DO_NOT_TRACK": "1"}

    def start(self) -> None:
        """Start it; what it prints goes to its log."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "autoexp", "resume", str(self._session)],
                cwd=self._home,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the drill, which ends it in its order
            )

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll() if self._process else None

    @property
    def last_words(self) -> str:
        """The last line that it has printed."""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""

    @property
    def prefect_has_all(self) -> bool:
        """True if it has ended well, and the server has got the last state."""
        return self.exit_code == 0 and _INCOMPLETE not in self._log.read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL, and wait for the end of the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """End the watching in an orderly way, else by a kill; its server ends by itself."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def end_left_over(self) -> None:
        """End the monitor, and have the keeper go on, which another process has started.

        Its keeper may stand still for an outage; it ends with the monitor, as its server does.
        """
        for pid in self._own_processes():
            with suppress(ProcessLookupError):
                if _is_keeper(pid):
                    os.kill(pid, signal.SIGCONT)
                elif read_proc(pid, "cmdline").endswith(b"\0%b\0" % os.fsencode(self._session)):
                    os.kill(pid, signal.SIGKILL)
                    _wait_for_end(partial(_has_ended, pid))

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Kill the server, and keep its keeper from starting another one meanwhile.

        Raises AutoexpError where there is none.
        """
        keeper, servers = self._server()
        os.kill(keeper, signal.SIGSTOP)
        try:
            for pid in servers:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            yield
        finally:
            with suppress(ProcessLookupError):
                os.kill(keeper, signal.SIGCONT)

    def _server(self) -> tuple[int, list[int]]:
        """The keeper, and the server below it."""
        deadline = time.monotonic() + _BEGINS_WITHIN_S
        while time.monotonic() < deadline:
            for keeper in self._own_processes():
                below = read_proc(keeper, f"task/{keeper}/children").split()
                if below and _is_keeper(keeper):
                    return keeper, [int(pid) for pid in below]
            time.sleep(0.2)
        raise AutoexpError(f"the monitor has no Prefect server of its own; see {self._log}")

    def server_answers(self) -> bool:
        """True if the server answers; a connection has its keeper start one that has died."""
        for state in self._home.glob("autoexp/server-*.json"):
            # That it wants a login is an answer, too.
            with suppress(OSError, ValueError, KeyError, http.client.HTTPException):
                port = int(json.loads(state.read_text())["port"])
                line = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWERS_WITHIN_S)
                try:
                    line.request("GET", "/api/health")
                    return bool(line.getresponse().status)
                finally:
                    line.close()
        return False

    def wait_for_server_to_end(self) -> None:
        """Wait until server and keeper have ended, so that their directory can be removed."""
        _wait_for_end(lambda: not self._own_processes())

    def _own_processes(self) -> list[int]:
        """Processes with this Prefect directory in their environment: server and keeper."""
        mark = b"PREFECT_HOME=" + os.fsencode(self._home)
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return [pid for pid in pids if mark in read_proc(pid, "environ").split(b"\0")]


def _is_keeper(pid: int) -> bool:
    return read_proc(pid, "comm").strip() == _KEEPER


def _has_ended(pid: int) -> bool:
    return processes.identity(pid) is None


def _wait_for_end(has_ended: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _ENDS_WITHIN_S
    while time.monotonic() < deadline and not has_ended():
        time.sleep(0.1)
