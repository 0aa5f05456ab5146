"""A session that waits in the foreground, with a server of its own that stands still."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from autoexp.flows.deployment import keeper
from autoexp.flows.deployment.server_lock import token
from autoexp.session.session import Session
from tests.flows.prefect_home import prefect_home
from tests.flows.sessions import Make
from tests.patience import PATIENCE_S, until
from tests.processes import cpu_ticks, stands_still, state

pytestmark = pytest.mark.prefect

# Goes on until it is cancelled.
LONG = (
    "cooldowns=[]",
    "backend.args.train_iters=1000000",
    "backend.args.save_interval=1000000",
    "backend.args.sleep_per_iteration_ms=50",
    "monitoring.save_progress_every_s=0.25",
)


def server_below(pid: int) -> int:
    """The server that a process has started through its keeper; 0: there is none."""
    for child in _children(pid):
        if _command(child).strip() == keeper.NAME:
            return next(iter(_children(child)), 0)
    return 0


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            found += map(int, (task / "children").read_text().split())
    return found


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


class Waiting:
    """A session that is watched, and the server that belongs to it."""

    def __init__(self, path: Path, monitor: "subprocess.Popen[str]") -> None:
        self.path = path
        self.monitor = monitor

    @property
    def server(self) -> int:
        """The server's process; 0: there is none yet."""
        return server_below(self.monitor.pid)

    @property
    def url(self) -> str:
        lines = (self.path / "terminal").read_text().splitlines()
        (line,) = [line for line in lines if line.startswith("Prefect UI")]
        return line.split()[5]

    def post(self, path: str, body: Any) -> Any:
        """Ask the server as somebody else would."""
        login = (self.path / "prefect-login").read_text().strip()
        headers = {"Authorization": token(login), "Content-Type": "application/json"}
        asked = urllib.request.Request(
            f"{self.url}/api{path}", json.dumps(body).encode(), {**headers, "Connection": "close"}
        )
        with urllib.request.urlopen(asked, timeout=PATIENCE_S) as answer:
            return json.loads(answer.read())

    def page(self) -> str:
        """The session's page as Prefect's UI shows it."""
        named = {"artifacts": {"key": {"like_": f"{self.path.name}-session"}}}
        found = self.post("/artifacts/filter", named)
        return str(found[0]["data"]) if found else ""

    @property
    def iteration(self) -> int:
        return Session.load(self.path).jobs["demo"].iteration or 0


def watched(path: Path, home: Path) -> Waiting:
    """Watch a session in the foreground, as a user would, without a server of the user's own."""
    environment = {**os.environ, "PREFECT_HOME": str(prefect_home(home))}
    environment.pop("PREFECT_API_URL")
    with (path / "terminal").open("w") as output:
        command = [sys.executable, "-m", "autoexp", "resume", path.name]
        monitor = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    return Waiting(path, monitor)  # type: ignore[arg-type]


@pytest.fixture
def waiting(make_session: Make, tmp_path: Path) -> Iterator[Waiting]:
    found = watched(make_session(*LONG), tmp_path)
    try:
        until(lambda: found.iteration > 20, "a training that goes on")
        until(lambda: stands_still(found.server), "a server that stands still")
        yield found
    finally:
        found.monitor.kill()
        found.monitor.wait()


def test_who_looks_at_a_waiting_session_sees_it_as_it_is_and_may_cancel_it(
    waiting: Waiting,
) -> None:
    server = waiting.server

    def stood_still_over_twenty_iterations() -> bool:
        begun, used = waiting.iteration, cpu_ticks(server)
        until(lambda: waiting.iteration > begun + 20, "further iterations")
        return stands_still(server) and cpu_ticks(server) == used

    # What began is shown first; numbers alone are reported to nobody.
    until(stood_still_over_twenty_iterations, "a server that stands still while numbers move")
    first = waiting.page()
    until(lambda: waiting.page() != first, "a page that was written anew")
    until(lambda: stands_still(server), "a server that stands still again")
    (run,) = [
        each
        for each in waiting.post("/flow_runs/filter", {})
        if each["name"] == f"session {waiting.path.name}"
    ]
    waiting.post(f"/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING"}})
    assert waiting.monitor.wait(PATIENCE_S) == 1
    job = Session.load(waiting.path).jobs["demo"]
    assert job.was_cancelled and "cancelled in Prefect" in str(job.reason)
    assert state(server) == ""


def test_what_a_session_emits_reaches_its_own_server_task_runs_included(waiting: Waiting) -> None:
    def names(of: str, key: str) -> set[str]:
        found = waiting.post(f"/{of}/filter", {})
        return {str(each[key]) for each in (found["events"] if of == "events" else found)}

    until(lambda: "autoexp.job.submitted" in names("events", "event"), "the session's own events")
    # Prefect's server knows of task runs by events alone.
    until(
        lambda: [name for name in names("task_runs", "name") if name.startswith("submit ")],
        "the task run of the submission",
    )
    until(lambda: stands_still(waiting.server), "a server that stands still again")


def test_a_killed_monitor_leaves_no_server_behind_that_stands_still(waiting: Waiting) -> None:
    server = waiting.server
    waiting.monitor.kill()
    waiting.monitor.wait()
    until(lambda: state(server) in ("", "Z"), "the end of the server")


def test_a_session_that_joins_goes_on_with_the_server_when_the_first_is_killed(
    waiting: Waiting, make_session: Make, tmp_path: Path
) -> None:
    server = waiting.server
    other = watched(make_session(*LONG), tmp_path)
    try:
        until(lambda: other.iteration > 20, "another training that goes on")
        assert (other.url, other.server) == (waiting.url, 0)
        waiting.monitor.kill()
        waiting.monitor.wait()
        assert "session" in other.page() and state(server) in ("R", "S", "T")
        runs = other.post("/flow_runs/filter", {})
        (run,) = [each for each in runs if each["name"] == f"session {other.path.name}"]
        other.post(f"/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING"}})
        assert other.monitor.wait(PATIENCE_S) == 1
        assert state(server) == ""
    finally:
        other.monitor.kill()
        other.monitor.wait()
