"""A Prefect server for all flow tests, and small sessions that run in seconds."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_SERVER_API_AUTH_STRING,
    temporary_settings,
)
from prefect.testing.utilities import prefect_test_harness

from autoexp.config.compose import compose
from autoexp.errors import AutoexpError
from autoexp.flows.deployment import server
from autoexp.operations.cancel import cancel_directly
from autoexp.session.session import Session
from tests.core.conftest import create

SMALL = (
    "backend.args.train_iters=300",
    "backend.args.save_interval=50",
    "backend.args.sleep_per_iteration_ms=4",
    "backend.args.lr_warmup_iters=20",
    "backend.args.hidden_size=32",
    "backend.args.global_batch_size=64",
    "monitoring.file_tick_s=0.25",
    "slurm.scheduler_tick_s=0.25",
)
LEARNS = ("backend.args.hidden_size=256", "backend.args.global_batch_size=256")
"""The demo's own model and batch, whose cooldowns end below the trunk; SMALL's do not."""
PATIENCE_S = 300.0
"""For what comes, sooner or later: machines differ, and others use them too."""
BRANCHES = "cooldowns=[{at: [100, 200], decay: {iterations: 50}}]"

Make = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One server for the whole run: it takes many seconds to start."""
    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    # Every client of ours has to bring it.
    auth_string = server.new_auth_string()
    locked = {PREFECT_API_AUTH_STRING: auth_string, PREFECT_SERVER_API_AUTH_STRING: auth_string}
    with temporary_settings(locked), prefect_test_harness(server_startup_timeout=600):
        url = str(PREFECT_API_URL.value())
        # For the processes that tests start, too.
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PREFECT_API_URL", url)
            patch.setenv("PREFECT_API_AUTH_STRING", auth_string)
            yield


@pytest.fixture
def make_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Creates small sessions below a root of their own; their jobs end with the test."""
    root = tmp_path / "sessions"
    monkeypatch.setenv("AUTOEXP_SESSIONS", str(root))

    def make(*overrides: str) -> Path:
        return create(compose("demo", [*SMALL, BRANCHES, *overrides]), root)

    yield make
    for path in root.glob("[!.]*/session.json"):
        end(path.parent)


def end(path: Path) -> None:
    """End a session's jobs, whoever watches them and whatever the test has made of it."""
    try:
        cancel_directly(path, (), "the tests")
    except AutoexpError:  # above all a monitor that is alive: it has to be asked
        autoexp("cancel", path.name, root=path.parent)


def autoexp(
    *arguments: str, root: Path, timeout: float = PATIENCE_S, embedded_server: bool = False
) -> "subprocess.CompletedProcess[str]":
    """Run the command line as a user would."""
    own = {"AUTOEXP_SESSIONS": str(root), "XDG_STATE_HOME": str(root.parent / "state")}
    environment = {**os.environ, **own}
    if embedded_server:
        environment.pop("PREFECT_API_URL")
        environment["PREFECT_HOME"] = str(root.parent / "prefect")
    return subprocess.run(
        [sys.executable, "-m", "autoexp", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def until(condition: Callable[[], Any], what: str, *, seconds: float = PATIENCE_S) -> Any:
    """Ask until the answer is yes, and return it; fail after `seconds`, naming `what`."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain for: {what}"
        time.sleep(0.1)
    return answer


def hold_back(path: Path, name: str = "demo") -> Path:
    """Have a job's trainer begin, and go no further, until the file that is returned is there."""
    gate = path / f"{name}-may-go"
    wait = f'until [ -e {gate} ]; do sleep 0.1; done; exec "$@"'
    edit_job(path, name, lambda command: ["/bin/sh", "-c", wait, "sh", *command])
    return gate


def edit_job(path: Path, name: str, edit: Callable[[list[str]], list[str]]) -> None:
    """Change a planned job's command before the session runs."""
    with Session.hold(path) as (session, _):
        job = session.jobs[name]
        command = tuple(edit(list(job.spec.command)))
        job.spec = job.spec.model_copy(update={"command": command})
        session.save_job(job)
