"""autoexp from Python, with a monitor in a process of its own."""

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


def test_the_example_runs(tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "first_steps.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "finished at iteration 400, 40 points logged" in answer.stdout
    assert "steps-cd200: finished at iteration 300" in answer.stdout
    assert len(list(tmp_path.glob("*.html"))) == 1


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
