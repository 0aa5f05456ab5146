"""The command of the system that this replaces, word for word, on the real cluster."""

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.slurm.bench import clear_queue
from tests.slurm.commands import Commands
from tests.sources import ROOT

pytestmark = [pytest.mark.slurm, pytest.mark.prefect]

WORDS = (
    *("project=test_cooldown", "backend=megatron", "slurm=local_cluster"),
    "monitoring=megatron_cooldown_single",
    *("backend.args.train_iters=200", "backend.args.save_interval=100"),
)


def test_one_session_of_two_jobs_with_the_cooldown_from_iteration_100(
    prefect_server: None, commands: Commands, tmp_path: Path
) -> None:
    del prefect_server
    name = f"seed-{secrets.token_hex(2)}"
    answer = subprocess.run(
        [sys.executable, "-m", "autoexp", "run", *WORDS, "--session", name],
        env={**os.environ, "AUTOEXP_SESSIONS": str(tmp_path / "sessions")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    clear_queue(name)

    assert answer.returncode == 0, answer.stdout + answer.stderr
    session = Session.load(tmp_path / "sessions" / name)
    assert {job: record.verdict for job, record in session.jobs.items()} == {
        "test_cooldown": Verdict.FINISHED,
        "test_cooldown-cd100": Verdict.FINISHED,
    }
    submissions = [c for c in commands.calls("sbatch") if not c.arguments.startswith("--test-only")]
    assert len(submissions) == 2
    branch = session.jobs["test_cooldown-cd100"]
    assert branch.spec.branch is not None
    assert branch.spec.branch.iteration == 100
    log = Path(branch.attempts[0].log).read_text()
    assert "iteration      110/     200" in log
    assert "iteration      100/     200" not in log
