"""What a user sees when a job or its submission fails: once, with the reason, nothing in vain."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest
from prefect import get_client
from prefect.client.schemas.objects import FlowRun, StateType, TaskRun

from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.fakes.slurm import Fakes
from tests.flows.commands import autoexp
from tests.flows.runs import subflows, task_runs
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.prefect

OWN = "examples/own-trainer/experiment.yaml"
BROKEN = 'backend.command=[python3, -c, "print({lr}); import no_such_module"]'
ALONE = ("cooldowns=[]", "monitoring.file_tick_s=0.25", "slurm.scheduler_tick_s=0.25")
REFUSAL = """case "$*" in
*--test-only*) exit 0 ;;
*) echo 'sbatch: error: invalid partition specified: gpu' >&2
   echo 'sbatch: error: Batch job submission failed: Invalid partition name specified' >&2
   exit 1 ;;
esac"""


def test_an_import_error_is_no_crash_to_restart_and_is_told_with_the_end_of_the_log(
    tmp_path: Path,
) -> None:
    root = tmp_path / "sessions"
    words = (BROKEN, "monitoring=production", *ALONE)
    answer = autoexp("run", OWN, *words, "--session", "s", root=root)
    assert answer.returncode == 1, answer.stdout + answer.stderr
    (job,) = Session.load(root / "s").jobs.values()
    assert len(job.attempts) == 1 and job.verdict is Verdict.FAILED
    exception = "ModuleNotFoundError: No module named 'no_such_module'"
    assert job.reason == f"FAILED (exit code 1) before its first iteration: {exception}"
    assert answer.stdout.count(f"own-trainer: the end of {job.attempts[0].log}\n") == 1
    assert answer.stdout.splitlines()[-1] == exception
    assert "plot" not in answer.stdout and not (root / "s" / "plot.png").exists()

    explained = autoexp("explain", "s", "own-trainer", root=root).stdout
    assert f"it died before its first iteration, of {exception}" in explained
    assert autoexp("status", "s", root=root).stdout.splitlines()[-1] == exception


async def test_a_session_that_failed_is_not_run_again_by_a_users_default_of_retries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_FLOWS_DEFAULT_RETRIES", "2")
    monkeypatch.setenv("PREFECT_TASKS_DEFAULT_RETRIES", "2")
    root = tmp_path / "sessions"
    # A thread of its own: the command waits for it.
    answer = await asyncio.to_thread(
        autoexp, "run", OWN, BROKEN, *ALONE, "--session", "s", root=root
    )
    assert answer.returncode == 1, answer.stdout + answer.stderr
    session = Session.load(root / "s")
    async with get_client() as client:
        run = await client.read_flow_run(UUID(session.meta.flow_run_ids[0]))
    runs: list[FlowRun | TaskRun] = [run, *await subflows(session), *await task_runs(session)]
    for each in runs:
        final = StateType.COMPLETED if each.name.startswith("submit") else StateType.FAILED
        assert (each.run_count, each.state_type) == (1, final), each.name
    assert len(await subflows(session)) == 1


def test_a_refused_submission_is_told_once_in_sbatchs_words(tmp_path: Path) -> None:
    folder, root = tmp_path / "bin", tmp_path / "sessions"
    folder.mkdir()
    Fakes(folder).tell("sbatch", REFUSAL)
    answer = subprocess.run(
        [sys.executable, "-m", "autoexp", "run", "demo", "slurm=local_cluster", "--session", "s"],
        env={
            **os.environ,
            "PATH": f"{folder}:{os.environ['PATH']}",
            "AUTOEXP_SESSIONS": str(root),
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    said = answer.stdout + answer.stderr
    assert answer.returncode == 1, said
    assert "Traceback" not in said and "job.log" not in said and "plot" not in said
    # As an event when it happens, and in the table at the end.
    assert " ".join(said.split()).count("Invalid partition name specified") == 2
    jobs = Session.load(root / "s").jobs
    assert jobs["demo"].reason == (
        "not submitted: invalid partition specified: gpu; "
        "Batch job submission failed: Invalid partition name specified"
    )
    assert jobs["demo-cd1000"].reason == (
        "never started: demo failed without a complete checkpoint at iteration 1000"
    )
