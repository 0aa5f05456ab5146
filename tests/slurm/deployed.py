"""A Prefect of one's own, as a group would run it: a server, a worker, the deployments."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from autoexp.flows.deployment.server import new_auth_string
from autoexp.flows.deployment.server_lock import token
from autoexp.session.find import session_of
from autoexp.session.session import Session
from tests.patience import PATIENCE_S, until
from tests.sources import ROOT

SMALL = [
    "slurm=local_cluster",
    "backend.args.train_iters=300",
    "backend.args.save_interval=50",
    "backend.args.lr_warmup_iters=20",
    "monitoring.file_tick_s=0.25",
    "slurm.scheduler_tick_s=0.5",
    "slurm.gpus_per_node=1",
    "cooldowns=[{at: [100, 200], decay: {iterations: 50}}]",
]
ENDED = {"COMPLETED", "FAILED", "CANCELLED"}


class Deployed:
    """A server on a port of its own with a home of its own; `close` ends all that it started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sessions = folder / "sessions"
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.auth_string = new_auth_string()
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")},
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": f"{self.url}/api",
            "PREFECT_API_AUTH_STRING": self.auth_string,
            "PREFECT_SERVER_API_AUTH_STRING": self.auth_string,
            "PREFECT_SERVER_API_PORT": str(port),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "AUTOEXP_SESSIONS": str(self.sessions),
            "PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}",
        }
        self._server: subprocess.Popen[bytes] | None = None
        self._workers: list[subprocess.Popen[bytes]] = []

    # What a person types

    def command(self, *words: str, timeout: float = 2 * PATIENCE_S) -> str:
        """Run a command, and return what it says; fails with that when it fails."""
        answer = subprocess.run(
            words,
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        assert answer.returncode == 0, answer.stdout
        return answer.stdout

    def start_server(self) -> None:
        log = (self.folder / "server.log").open("ab")
        self._server = subprocess.Popen(
            [sys.executable, "-m", "autoexp.flows.deployment.serve"],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        until(self._answers, "the server")

    def stop_server(self) -> None:
        assert self._server is not None
        self._server.terminate()
        self._server.wait(timeout=PATIENCE_S)

    def start_worker(self) -> "subprocess.Popen[bytes]":
        log = (self.folder / "worker.log").open("ab")
        worker = subprocess.Popen(
            ["autoexp", "worker"],
            cwd=self.folder,
            env={**self.environment, "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        self._workers.append(worker)
        return worker

    def kill_worker(self, signum: signal.Signals) -> None:
        """End the worker that was started last, and wait for its end."""
        worker = self._workers.pop()
        worker.send_signal(signum)
        worker.wait(timeout=PATIENCE_S)

    def run(self, *overrides: str) -> str:
        """`prefect deployment run autoexp-train/train`; returns the flow run's id."""
        words = ["prefect", "deployment", "run", "autoexp-train/train", "-p", "config=demo"]
        words += ["-p", f"overrides={json.dumps([*SMALL, *overrides])}"]
        # Tests cannot wait for the three heartbeats of a deployment as it is shipped.
        words += ["-jv", 'env={"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}']
        said = self.command(*words)
        return said.split("UUID: ")[1].split()[0]

    # What the server and the directory say

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the server's API, behind the back of what is tested."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Authorization": token(self.auth_string)}
        request = urllib.request.Request(f"{self.url}/api{path}", data, headers, method=method)
        while True:
            try:
                with urllib.request.urlopen(request, timeout=120) as answer:
                    return json.loads(answer.read() or b"null")
            except urllib.error.HTTPError as error:
                # A busy SQLite: Prefect's own client tries again, too.
                if error.code < 500:
                    raise
                time.sleep(1)

    def page(self, path: str) -> str:
        """The address of a page of the UI, which opens it."""
        return f"{self.url}{path}#{self.auth_string}"

    def flow_run(self, flow_run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("GET", f"/flow_runs/{flow_run_id}")
        return found

    def subflows(self, flow_run_id: str) -> list[dict[str, Any]]:
        body = {"flow_runs": {"parent_flow_run_id": {"any_": [flow_run_id]}}}
        found: list[dict[str, Any]] = self.ask("POST", "/flow_runs/filter", body)
        return found

    def events(self, session_id: str) -> list[dict[str, Any]]:
        """autoexp's events about a session or its jobs."""
        about = {"id_prefix": [f"autoexp.job.{session_id}", f"autoexp.session.{session_id}"]}
        body = {"filter": {"resource": about}, "limit": 50}
        found: list[dict[str, Any]] = self.ask("POST", "/events/filter", body)["events"]
        return found

    def artifact(self, key: str) -> dict[str, Any]:
        """The latest artifact of a key."""
        # `/artifacts/KEY/latest` gives the collection's id, with which no page can be opened.
        body = {"artifacts": {"key": {"any_": [key]}}, "sort": "CREATED_DESC", "limit": 1}
        found: list[dict[str, Any]] = self.ask("POST", "/artifacts/filter", body)
        return found[0]

    def ended(self, flow_run_id: str, *, seconds: float = 2 * PATIENCE_S) -> dict[str, Any]:
        """Wait for the end of a flow run."""

        def over() -> bool:
            time.sleep(1)
            return self.flow_run(flow_run_id)["state_type"] in ENDED

        until(over, f"the end of flow run {flow_run_id}", seconds=seconds)
        return self.flow_run(flow_run_id)

    def session(self, flow_run_id: str, *, seconds: float = PATIENCE_S) -> Path:
        """Wait for the session that a flow run makes."""

        def made() -> Path | None:
            return session_of(flow_run_id, self.sessions)

        found: Path = until(made, "the session's directory", seconds=seconds)
        return found

    def seen(self, path: Path, key: str, *, seconds: float = PATIENCE_S) -> None:
        """Wait for an event whose key begins like this."""

        def found() -> bool:
            return any(e.event.key.startswith(key) for e in Session.load(path).journal.entries)

        until(found, key, seconds=seconds)

    def close(self) -> None:
        for worker in self._workers:
            _end(worker)
        if self._server is not None and self._server.poll() is None:
            self.stop_server()
        # `make deploy` leaves a server in the background, and that is what it is for.
        for file in (self.folder / "prefect").glob("*.pid"):
            _kill(int(file.read_text()), signal.SIGTERM)

    def _answers(self) -> bool:
        try:
            return bool(self.ask("GET", "/health"))
        except OSError:
            return False


class Listener:
    """A web server that remembers what is posted to it."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                listener.heard.append(self.rfile.read(length).decode())
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def __enter__(self) -> "Listener":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()


def monitor_pid(path: Path) -> int:
    """The process that watches a session, as its lease says."""
    pid: int = json.loads((path / "monitor.json").read_text())["pid"]
    return pid


def _end(worker: "subprocess.Popen[bytes]") -> None:
    if worker.poll() is None:
        worker.terminate()
        try:
            worker.wait(timeout=30)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def _kill(pid: int, signum: signal.Signals) -> None:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        pass


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
