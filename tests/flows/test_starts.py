"""Trainers that do not take up their checkpoints: they fail, and change nobody else's files."""

import subprocess
from pathlib import Path

import pytest

from autoexp.flows.train import train
from autoexp.operations import retry
from autoexp.reports.curves import gains
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.flows.commands import autoexp
from tests.flows.sessions import Make
from tests.sources import ROOT

pytestmark = pytest.mark.prefect

OWN_TRAINER = ROOT / "examples" / "own-trainer"
RESUMES = 'if (folder / "latest").exists():'


def contents(folder: Path, *names: str) -> dict[str, bytes]:
    """Files of a checkpoint."""
    return {name: (folder / name).read_bytes() for name in names}


def again_alone(session: Session, directory: Path) -> Path:
    """Train what the session's training trained, with nobody around; returns its save directory."""
    (name, job), *_ = session.jobs.items()
    assert job.spec.parent is None, name
    command = [word.replace(job.spec.save_dir, str(directory)) for word in job.spec.command]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    return directory


async def test_a_demo_branch_that_ignores_its_seed_fails_and_changes_nothing_of_its_parent(
    make_session: Make, tmp_path: Path
) -> None:
    path = make_session("backend.args.ignore_checkpoint=true", "backend.args.write_in_place=true")
    await train(session=path.name, return_state=True)

    session = Session.load(path)
    assert session.jobs["demo"].verdict is Verdict.FINISHED
    for at in (100, 200):
        job = session.jobs[f"demo-cd{at}"]
        assert job.verdict is Verdict.FAILED
        assert f"did not begin at its branch point, iteration {at}" in (job.reason or "")
        assert job.checkpoints == []
        assert job.tainted is None
        assert f"start/{job.spec.name}/a1" in {e.event.key for e in session.journal.entries}
    assert gains(session) == []
    alone = again_alone(session, tmp_path / "alone")
    names = ("model.npz", "optimizer.npz", "rng.json")
    for at in (100, 200):
        folder = f"iter_{at:07d}"
        parents = Path(session.jobs["demo"].spec.save_dir) / folder
        assert contents(parents, *names) == contents(alone / folder, *names)


async def test_a_restarted_training_that_begins_at_0_fails(make_session: Make) -> None:
    path = make_session(
        "cooldowns=[]",
        "backend.args.ignore_checkpoint=true",
        "backend.args.fail_at_iteration=120",
    )
    await train(session=path.name, return_state=True)
    with Session.hold(path) as (session, _):
        (job,) = session.jobs.values()
        assert job.verdict is Verdict.FAILED
        assert "exit code 1" in (job.reason or "")
        retry.retry(session, (), "the test")

    await train(session=path.name, return_state=True)
    (job,) = Session.load(path).jobs.values()
    assert job.verdict is Verdict.FAILED
    assert "did not begin at its last checkpoint, iteration 100" in (job.reason or "")


def test_a_trainer_of_ones_own_that_ignores_its_seed_fails_and_changes_nothing_of_its_parent(
    tmp_path: Path,
) -> None:
    deaf = tmp_path / "train.py"
    text = (OWN_TRAINER / "train.py").read_text()
    assert RESUMES in text
    # It begins anew, with other weights, and writes into files that are there.
    deaf.write_text(text.replace(RESUMES, f"{RESUMES}\n        weight = 20.0\n    if False:"))
    root = tmp_path / "sessions"
    words = ("run", str(OWN_TRAINER / "experiment.yaml"), f"backend.source={deaf}")
    answer = autoexp(*words, "backend.start_line=null", "--session", "own", root=root)
    assert answer.returncode == 1, answer.stdout + answer.stderr

    session = Session.load(root / "own")
    assert session.jobs["own-trainer"].verdict is Verdict.FINISHED
    for at in (200, 300):
        job = session.jobs[f"own-trainer-cd{at}"]
        assert job.verdict is Verdict.FAILED
        assert "did not begin at its branch point" in (job.reason or "")
        assert "its log begins with iteration 10" in (job.reason or "")
    assert "gained" not in answer.stdout
    alone = again_alone(session, tmp_path / "alone")
    for at in (100, 200, 300, 400):
        place = Path("ckpt", f"{at:04d}")
        parents = Path(session.jobs["own-trainer"].spec.save_dir)
        assert contents(parents / place, "state.json") == contents(alone / place, "state.json")
