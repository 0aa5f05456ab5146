"""The command line and its monitor as processes, as a user runs them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from autoexp.session.session import Session
from tests.flows.prefect_home import prefect_home
from tests.patience import PATIENCE_S, until


def autoexp(
    *arguments: str, root: Path, timeout: float = PATIENCE_S, embedded_server: bool = False
) -> "subprocess.CompletedProcess[str]":
    """Run the command line as a user would."""
    own = {"AUTOEXP_SESSIONS": str(root), "XDG_STATE_HOME": str(root.parent / "state")}
    environment = {**os.environ, **own}
    if embedded_server:
        environment.pop("PREFECT_API_URL")
        environment["PREFECT_HOME"] = str(prefect_home(root.parent))
    return subprocess.run(
        [sys.executable, "-m", "autoexp", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def start_monitor(path: Path) -> "subprocess.Popen[str]":
    """`autoexp resume` in a process group of its own, as a shell starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "autoexp", "resume", path.name],
        env={**os.environ, "AUTOEXP_SESSIONS": str(path.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )


def wait_until_running(path: Path, job: str = "demo") -> None:
    until(lambda: Session.load(path).jobs[job].state == "RUNNING", f"{job} running")


def interrupt(monitor: "subprocess.Popen[str]") -> str:
    """Ctrl-C: the whole process group gets SIGINT."""
    os.killpg(monitor.pid, signal.SIGINT)
    output, _ = monitor.communicate(timeout=PATIENCE_S)
    return output
