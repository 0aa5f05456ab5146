"""The example with Hugging Face's Trainer, for real, where torch and transformers are there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoexp.curves import gains
from autoexp.jobs import Verdict
from autoexp.session import Session
from tests.flows.conftest import autoexp

pytestmark = [pytest.mark.prefect, pytest.mark.slow]

# Another Python may have them: they are some gigabytes.
PYTHON = os.environ.get("AUTOEXP_TEST_TORCH_PYTHON", sys.executable)


def has_the_trainer() -> bool:
    code = "import torch, transformers, accelerate"
    return subprocess.run([PYTHON, "-c", code], capture_output=True).returncode == 0


def test_the_example_trains_and_its_two_cooldowns_end_lower(tmp_path: Path) -> None:
    if not has_the_trainer():
        pytest.skip(f"{PYTHON} has no torch and transformers: pip install -e .[huggingface]")
    root = tmp_path / "sessions"
    words = ("run", "huggingface", "--session", "hf", f"backend.python={PYTHON}")
    answer = autoexp(*words, root=root, timeout=500, embedded_server=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr

    session = Session.load(root / "hf")
    assert {name: job.iteration for name, job in session.jobs.items()} == {
        "huggingface": 400,
        "huggingface-cd200": 260,
        "huggingface-cd300": 360,
    }
    assert {job.verdict for job in session.jobs.values()} == {Verdict.FINISHED}
    found = gains(session)
    assert len(found) == 2
    assert all(gain.gain > 0 for gain in found), found
