"""autoexp from Python, with a monitor in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import autoexp
from tests.builders import TINY
from tests.flows.prefect_home import prefect_home
from tests.patience import PATIENCE_S
from tests.sources import ROOT


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions below the test, and no server but the monitor's own."""
    monkeypatch.setenv("AUTOEXP_SESSIONS", str(tmp_path / "sessions"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(prefect_home(tmp_path)))


# Each cell by itself, in one namespace, as Jupyter runs them.
RUN_CELLS = """
import json, pathlib, sys
names = {}
for number, cell in enumerate(json.loads(pathlib.Path(sys.argv[1]).read_text())["cells"]):
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
"""


def test_the_example_notebook_runs_from_its_first_cell_to_its_last(tmp_path: Path) -> None:
    notebook = ROOT / "examples" / "first_steps.ipynb"
    answer = subprocess.run(
        [sys.executable, "-c", RUN_CELLS, str(notebook)],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "backend.args.learning_rate: no such key" in answer.stdout
    assert "steps: finished at iteration 400, loss" in answer.stdout
    assert "steps-cd300: finished at iteration 400, loss" in answer.stdout
    assert (tmp_path / "curves.png").exists() and len(list(tmp_path.glob("*.html"))) == 1


def test_the_notebook_is_kept_without_output() -> None:
    cells = json.loads((ROOT / "examples" / "first_steps.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)


def test_a_monitor_that_was_started_from_python_is_asked_to_cancel() -> None:
    slow = "backend.args.sleep_per_iteration_ms=500"
    session = autoexp.run(autoexp.compose("demo", *TINY, slow))
    session.cancel()
    assert session.wait(timeout_s=PATIENCE_S).state == "failed"
    assert "cancel" in (session.jobs["tiny"].reason or "")


def test_a_monitor_that_does_not_start_is_reported_with_what_it_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")  # nobody listens there
    session = autoexp.run(autoexp.compose("demo", *TINY))
    with pytest.raises(autoexp.AutoexpError, match=r"no monitor is running(.|\n)*127\.0\.0\.1:9"):
        session.wait(timeout_s=PATIENCE_S)
