"""Start-up times of the command line: help, a plan, a run up to its first submission."""

import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.world import yardstick
from bench.world.measure import Figure
from bench.world.yardstick import children_cpu_s

_REPEATS = 5
# A trunk that is cancelled as soon as it has been submitted.
_LONG = ("backend.args.train_iters=100000", "cooldowns=[]", "project.name=start")


def start() -> list[Figure]:
    """`--help`, `plan demo`, and `run` to its first submission, with Prefect's part named."""
    with tempfile.TemporaryDirectory() as folder:
        environment = _environment(Path(folder))

        def run(*arguments: str) -> float:
            """Seconds of CPU of a command that waits for nothing, whatever runs beside it."""
            command = [sys.executable, *arguments]
            return children_cpu_s(
                lambda: subprocess.run(command, env=environment, capture_output=True, check=True)
            )

        run("-m", "autoexp", "plan", "demo")
        helps = [run("-m", "autoexp", "--help") for _ in range(_REPEATS)]
        plans = [run("-m", "autoexp", "plan", "demo") for _ in range(_REPEATS)]
        imports = [run("-c", "import prefect, prefect.artifacts") for _ in range(_REPEATS)]
        scale = yardstick.scale()
        runs = [_first_submission(environment, Path(folder)) for _ in range(3)]
    totals, servers = [total for total, _ in runs], [server for _, server in runs]
    ours = [total - server for total, server in runs]
    return [
        Figure("autoexp --help: CPU", "s", helps, below=0.3, scale=scale),
        Figure("autoexp plan demo: CPU", "s", plans, below=1.0, scale=scale),
        Figure("autoexp run, to the first submission", "s", totals, below=6.0, scale=scale),
        Figure("of which until Prefect's own server answers", "s", servers),
        Figure("of which afterwards: the flow run begins, the job is submitted", "s", ours),
        Figure("for comparison: import prefect alone: CPU", "s", imports),
    ]


def _environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {
        **kept,
        "PREFECT_HOME": str(folder / "prefect"),
        "AUTOEXP_SESSIONS": str(folder / "sessions"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }


def _first_submission(environment: dict[str, str], folder: Path) -> tuple[float, float]:
    """Seconds until the first job was submitted, and until Prefect's server answered."""
    began = time.time()
    process = subprocess.Popen(
        [sys.executable, "-m", "autoexp", "run", "demo", *_LONG],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    served = 0.0
    try:
        for line in process.stdout:
            if line.startswith("Prefect UI"):
                served = time.time() - began
                break
        submitted = _wait_for_submission(folder / "sessions", process)
    finally:
        process.terminate()
        process.communicate(timeout=60)
    for session in (folder / "sessions").iterdir():
        _run(environment, "cancel", session.name)
        _run(environment, "sessions", "remove", session.name, "--yes")
    return submitted - began, served


def _run(environment: dict[str, str], *arguments: str) -> None:
    command = [sys.executable, "-m", "autoexp", *arguments]
    subprocess.run(command, env=environment, capture_output=True)


def _wait_for_submission(sessions: Path, process: "subprocess.Popen[str]") -> float:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        for path in sessions.glob("*/jobs/*.json"):
            job: dict[str, Any] = json.loads(path.read_text())
            times = [a["submitted_at"] for a in job["attempts"] if a["submitted_at"]]
            if times:
                return datetime.fromisoformat(times[0]).timestamp()
        time.sleep(0.02)
    raise RuntimeError(f"{sessions}: nothing was submitted within two minutes")
