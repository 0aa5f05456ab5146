"""`autoexp save` and `branch --now` asked of a running session on a real cluster."""

import asyncio
from pathlib import Path

import pytest

from autoexp.config.compose import compose
from autoexp.session.action_records import ActionStatus
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.builders import create
from tests.flows.commands import autoexp
from tests.flows.sessions import Make
from tests.patience import until
from tests.slurm.watching import run
from tests.sources import ROOT

pytestmark = [pytest.mark.slurm, pytest.mark.prefect, pytest.mark.slow]

OWN = ROOT / "examples" / "own-trainer"
SAVES = "        also = str(step)"
LOOKS = """        asked = options.out / "save"
        if asked.exists():
            asked.unlink()
            save(folder, step, weight)
"""


def asking_trainer(tmp_path: Path) -> Path:
    """The example's trainer, which also saves when it finds a file, and removes that."""
    text = (OWN / "train.py").read_text()
    assert text.count(SAVES) == 1
    trainer = tmp_path / "train.py"
    trainer.write_text(text.replace(SAVES, LOOKS + SAVES))
    return trainer


def off_the_grid(path: Path, job: str) -> list[int]:
    return [at for at in Session.load(path).jobs[job].checkpoints if at % 10_000]


def has_logged(path: Path, job: str) -> bool:
    attempt = Session.load(path).jobs[job].attempt
    return attempt is not None and attempt.state == "RUNNING" and bool(attempt.first_logged)


def save_and_branch(path: Path, job: str, told: str) -> None:
    """Ask for a checkpoint, then for a cooldown from another one; the training goes on."""
    root = path.parent
    until(lambda: has_logged(path, job), "an iteration is logged")
    answer = autoexp("save", path.name, root=root)
    assert answer.returncode == 0, answer.stderr
    until(lambda: off_the_grid(path, job), "the checkpoint that was asked for")
    (first,) = off_the_grid(path, job)

    words = ("--now", "--decay", "iterations=20", "--decay", "shape=linear")
    answer = autoexp("branch", path.name, *words, root=root)
    assert answer.returncode == 0, answer.stderr
    until(lambda: len(off_the_grid(path, job)) == 2, "a second one")
    second = off_the_grid(path, job)[-1]
    name = f"{job}-cd{second}-now"

    def is_cooled() -> bool:
        found = Session.load(path).jobs.get(name)
        return found is not None and found.is_over

    until(is_cooled, "the end of the cooldown")
    session = Session.load(path)
    cooldown, training = session.jobs[name], session.jobs[job]
    assert cooldown.verdict is Verdict.FINISHED, cooldown.reason
    assert cooldown.attempts[0].started_from == second
    assert cooldown.spec.target_iteration == second + 20
    # The training has gone on in its first attempt, behind both.
    assert (len(training.attempts), training.state) == (1, "RUNNING")
    until(lambda: (Session.load(path).jobs[job].iteration or 0) > second, "further iterations")
    done = [action for action in session.actions.values() if action.rule == "save"]
    assert [action.status for action in done] == [ActionStatus.DONE] * 2
    assert all(told in (action.result or "") for action in done)
    assert first < second


async def asked_of(path: Path, job: str) -> None:
    """Run the session while it is asked, and cancel it then."""
    running = asyncio.create_task(run(path))
    try:
        await asyncio.to_thread(save_and_branch, path, job, "accepted")
    finally:
        answer = await asyncio.to_thread(autoexp, "cancel", path.name, root=path.parent)
    assert answer.returncode == 0, answer.stderr
    assert (await running)[0] == "CANCELLED"


async def test_a_trainer_saves_now_at_a_signal_and_a_cooldown_starts_from_there(
    make_session: Make,
) -> None:
    path = make_session(
        "cooldowns=[]",
        "backend.args.train_iters=100000",
        "backend.args.save_interval=10000",
        "backend.args.sleep_per_iteration_ms=20",
        "slurm.launcher=srun",
    )
    await asked_of(path, "demo")


async def test_a_trainer_saves_now_at_a_file_which_it_removes_and_a_cooldown_starts_from_there(
    make_session: Make, tmp_path: Path
) -> None:
    del make_session  # it ends the jobs of all sessions below its root
    words = [
        "slurm=local_cluster",
        "slurm.scheduler_tick_s=0.5",
        f"backend.source={asking_trainer(tmp_path)}",
        "backend.save_file='{save_dir}/save'",
        "backend.args.train_iters=100000",
        "backend.args.save_interval=10000",
        "cooldowns=[]",
    ]
    path = create(compose(str(OWN / "experiment.yaml"), words), tmp_path / "sessions")
    await asked_of(path, "own-trainer")
    save_dir = Path(Session.load(path).jobs["own-trainer"].spec.save_dir)
    assert not (save_dir / "save").exists()
