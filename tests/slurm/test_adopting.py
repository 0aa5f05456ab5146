"""A job that was started by hand comes under a session's eye."""

import json
import secrets
import shlex
import shutil
from pathlib import Path

import pytest

from autoexp.config.compose import compose
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.flows.commands import autoexp
from tests.flows.sessions import BRANCHES, SMALL
from tests.patience import until
from tests.slurm.bench import clear_queue, slurm
from tests.slurm.commands import Commands

pytestmark = [pytest.mark.slurm, pytest.mark.prefect]

MINE = (*SMALL, "slurm=local_cluster", "slurm.gpus_per_node=0", "project.name=by-hand")
ID = f"mine-{secrets.token_hex(2)}"
SLOWLY = "backend.args.sleep_per_iteration_ms=20"


def start_by_hand(save_dir: Path, log: Path) -> str:
    """What somebody did last week: an sbatch of their own; returns the job id."""
    trainer = compose("demo", [*MINE, SLOWLY]).experiment.trainer
    command = shlex.join(trainer.trunk_command(save_dir))
    options = ["-p", "main", "--mem=300M", "-J", "my old run", "-o", str(log)]
    return slurm("sbatch", "--parsable", *options, "--wrap", command).strip()


def test_a_job_that_was_started_by_hand_gets_its_cooldowns_and_its_verdict(
    prefect_server: None, commands: Commands, tmp_path: Path
) -> None:
    del prefect_server
    root, save_dir, log = tmp_path / "sessions", tmp_path / ID, tmp_path / "my run.log"
    job_id = start_by_hand(save_dir, log)
    taken = ("--job-id", job_id, "--backend", "demo", "--save-dir", str(save_dir))
    until(lambda: (save_dir / "iter_0000050").exists(), "a first checkpoint")
    try:
        answer = autoexp("adopt", ID, *taken, *MINE, SLOWLY, BRANCHES, root=root)
        assert answer.returncode == 0, answer.stderr
        assert f"autoexp resume {ID}" in answer.stdout
        assert autoexp("resume", ID, root=root).returncode == 0
    finally:
        clear_queue(ID)

    session = Session.load(root / ID)
    assert {job.verdict for job in session.jobs.values()} == {Verdict.FINISHED}
    assert {name: job.iteration for name, job in session.jobs.items()} == {
        "by-hand": 300,
        "by-hand-cd100": 150,
        "by-hand-cd200": 250,
    }
    (attempt,) = session.jobs["by-hand"].attempts
    assert (attempt.job_id, attempt.name, attempt.log) == (job_id, "my old run", str(log))
    # Nothing was submitted for it: the two cooldowns are all.
    assert commands.counts()["sbatch"] == 2


def test_what_cannot_be_adopted_is_refused_with_the_reason_and_leaves_no_session(
    commands: Commands, tmp_path: Path
) -> None:
    del commands
    root = tmp_path / "sessions"
    rest = ("--backend", "demo", "--save-dir", str(tmp_path))
    for job_id, words in (("9999999", "Invalid job id"), ("1;ls", "no SLURM job id")):
        answer = autoexp("adopt", ID, "--job-id", job_id, *rest, *MINE, root=root)
        assert answer.returncode == 2
        assert words in answer.stderr
    answer = autoexp("adopt", ID, "--job-id", "1", *rest, *SMALL, root=root)
    assert answer.returncode == 2
    assert "slurm=NAME" in answer.stderr
    assert json.loads(autoexp("sessions", "list", "--json", root=root).stdout) == []


def test_a_job_is_adopted_by_one_session_until_that_is_over_or_gone(
    commands: Commands, tmp_path: Path
) -> None:
    root, save_dir, log = tmp_path / "sessions", tmp_path / ID, tmp_path / "my run.log"
    job_id = start_by_hand(save_dir, log)
    taken = ("--job-id", job_id, "--backend", "demo", "--save-dir", str(save_dir))
    try:
        for _ in range(2):  # a request may be given twice
            assert autoexp("adopt", ID, *taken, *MINE, SLOWLY, root=root).returncode == 0
        refused = autoexp("adopt", f"{ID}-2", *taken, *MINE, SLOWLY, root=root)
        assert refused.returncode == 2
        assert f"session {root / ID}, which goes on" in refused.stderr
        assert not (root / f"{ID}-2").exists()

        shutil.rmtree(root / ID)
        assert autoexp("adopt", f"{ID}-2", *taken, *MINE, SLOWLY, root=root).returncode == 0
    finally:
        slurm("scancel", job_id)
    del commands
