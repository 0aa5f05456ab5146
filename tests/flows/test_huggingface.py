"""Hugging Face's Trainer, for real, where torch and transformers are there.

The example resumes when it is told, as Transformers' own do; its variants here never do.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoexp.reports.curves import gains, read_curve
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.flows.commands import autoexp
from tests.sources import ROOT

pytestmark = [pytest.mark.prefect, pytest.mark.slow]

# Another Python may have them: they are some gigabytes.
PYTHON = os.environ.get("AUTOEXP_TEST_TORCH_PYTHON", sys.executable)


EXAMPLE = ROOT / "examples" / "huggingface" / "train.py"
RESUMES = "resume_from_checkpoint=arguments.resume_from_checkpoint"


@pytest.fixture(autouse=True)
def has_the_trainer() -> None:
    code = "import torch, transformers, accelerate"
    if subprocess.run([PYTHON, "-c", code], capture_output=True).returncode != 0:
        pytest.skip(f"{PYTHON} has no torch and transformers: pip install -e .[huggingface]")


def run(root: Path, *overrides: str, code: int) -> Session:
    """Run the example's experiment to its end."""
    words = ("run", "huggingface", "--session", "hf", f"backend.python={PYTHON}", *overrides)
    answer = autoexp(*words, root=root, timeout=600, embedded_server=True)
    assert answer.returncode == code, answer.stdout + answer.stderr
    return Session.load(root / "hf")


def deaf(directory: Path, *, more: str = "") -> Path:
    """The example as it would be if it resumed from nothing, whatever it is told."""
    text = EXAMPLE.read_text()
    assert RESUMES in text
    script = directory / "deaf.py"
    script.write_text(text.replace(f"trainer.train({RESUMES})", f"{more}trainer.train()"))
    return script


def test_the_example_trains_and_its_two_cooldowns_end_lower(tmp_path: Path) -> None:
    session = run(tmp_path / "sessions", code=0)

    assert {name: job.iteration for name, job in session.jobs.items()} == {
        "huggingface": 400,
        "huggingface-cd200": 260,
        "huggingface-cd300": 360,
    }
    assert {job.verdict for job in session.jobs.values()} == {Verdict.FINISHED}
    found = gains(session)
    assert len(found) == 2
    assert all(gain.gain > 0 for gain in found), found
    begun = {name: job.attempts[0].started_from for name, job in session.jobs.items()}
    assert begun == {"huggingface": 0, "huggingface-cd200": 200, "huggingface-cd300": 300}


def test_a_branch_goes_on_with_another_data_set(tmp_path: Path) -> None:
    decay = "at: [200], decay: {iterations: 40}"
    other = "backend: {script_args: {dialect: 2}}"
    branches = f"cooldowns=[{{{decay}, name: same}}, {{{decay}, name: other, {other}}}]"
    session = run(tmp_path / "sessions", branches, code=0)

    assert {job.verdict for job in session.jobs.values()} == {Verdict.FINISHED}
    losses, starts = {}, {}
    for name in ("same", "other"):
        job = session.jobs[f"huggingface-cd200-{name}"]
        starts[name] = job.attempts[0].started_from
        curve = read_curve(session.path, job.spec.name)
        losses[name] = curve.losses[0]
        assert job.spec.branch is not None
        for at, rate in zip(curve.iterations, curve.learning_rates, strict=True):
            # A step is logged with the rate at which it was made, the first being step 0.
            planned = job.spec.trainer.planned_rate(job.spec.branch, at - 1)
            assert rate == pytest.approx(planned, rel=0.01, abs=1e-6)
    assert starts == {"same": 200, "other": 200}
    # The weights of the checkpoint know one language, and not the other.
    assert losses["other"] > losses["same"] + 0.5
    assert session.jobs["huggingface-cd200-other"].spec.changes == {
        "backend.script_args.dialect": 2
    }


SHORT = ("backend.args.max_steps=80", "backend.args.save_steps=20", "backend.args.warmup_steps=5")


def test_a_script_that_is_deaf_fails_its_cooldowns_and_leaves_their_parent_as_it_was(
    tmp_path: Path,
) -> None:
    script = deaf(tmp_path)
    branches = "cooldowns=[{at: [20, 40], decay: {iterations: 20}}]"
    session = run(tmp_path / "sessions", f"backend.script={script}", branches, *SHORT, code=1)
    trunk = session.jobs["huggingface"]
    assert trunk.verdict is Verdict.FINISHED
    assert gains(session) == []
    for at in (20, 40):
        job = session.jobs[f"huggingface-cd{at}"]
        assert job.verdict is Verdict.FAILED
        assert f"did not begin at its branch point, iteration {at}" in (job.reason or "")
        assert "its trainer says that it begins at iteration 0" in (job.reason or "")
        assert job.tainted is None

    # The same training with nobody around saves the same, bit for bit.
    alone = tmp_path / "alone"
    command = [word.replace(trunk.spec.save_dir, str(alone)) for word in trunk.spec.command]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    for at in (20, 40, 60, 80):
        for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
            file = Path(f"checkpoint-{at}", name)
            saved = (Path(trunk.spec.save_dir) / file).read_bytes()
            assert saved == (alone / file).read_bytes(), file


def test_a_deaf_training_that_is_restarted_fails(tmp_path: Path) -> None:
    dies = (
        "from transformers import TrainerCallback\n"
        "    class Dies(TrainerCallback):\n"
        "        def on_step_end(self, args, state, control, **kwargs):\n"
        "            if state.global_step == 50:\n"
        "                raise SystemExit(3)\n"
        "    trainer.add_callback(Dies())\n"
        "    "
    )
    root = tmp_path / "sessions"
    script = deaf(tmp_path, more=dies)
    session = run(root, f"backend.script={script}", "cooldowns=[]", *SHORT, code=1)
    assert "exit code 3" in (session.jobs["huggingface"].reason or "")

    answer = autoexp("retry", "hf", root=root, timeout=600, embedded_server=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    autoexp("resume", "hf", root=root, timeout=600, embedded_server=True)
    job = Session.load(root / "hf").jobs["huggingface"]
    assert job.verdict is Verdict.FAILED
    assert "did not begin at its last checkpoint, iteration 40" in (job.reason or "")
