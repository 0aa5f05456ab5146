"""Real trainers through all that happens: a time limit in the trunk, a kill -9 in a cooldown.

Transformers' Trainer by the example of this repository, alone and under a torchrun of four
processes; TRL's SFTTrainer by TRL's own script. What is not installed is skipped by name.
"""

import json
import math
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from autoexp.jobs.record import JobRecord
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.flows.commands import autoexp
from tests.sources import ROOT
from tests.trainers.real import torch_python

pytestmark = [pytest.mark.prefect, pytest.mark.slow]

PEAK, WARMUP, SAVES, LENGTH, DECAY = 1e-3, 5, 10, 80, 20
KILLED, WHOLE = 40, 60
"""Branch points: of the cooldown whose first attempt is killed at step 53, and of the other."""
SLOW = 15
"""The step after which the trunk waits for its time limit."""

TRAINERS = ROOT / "tests" / "trainers"
EXAMPLE = ROOT / "examples" / "huggingface" / "train.py"
SIZES = "backend.script_args={hidden_size: 16, layers: 1, sequence_length: 16}"
RESTARTS = "monitoring.state_events={crash: {to: [FAILED], actions: [{restart: {}}]}}"
COOLDOWNS = (
    f"cooldowns=[{{at: [{KILLED}, {WHOLE}], decay: {{iterations: {DECAY}, shape: minus_sqrt}}}}]"
)


def run(root: Path, script: Path, *overrides: str, processes: int = 1) -> Session:
    """A session of the script, with a disturbance in two of its jobs."""
    python = torch_python("torch", "transformers", "accelerate")
    start = time.monotonic()
    # Both cooldowns start at once; their limit is the trunk's, and only the trunk is to meet it.
    code = "import torch, transformers.trainer"
    starts = [subprocess.Popen([python, "-c", code]) for _ in range(2 * processes)]
    assert {each.wait() for each in starts} == {0}
    # Room for the start, in which a trainer cannot save yet, and as much again for its steps.
    warned_s = 10 + 5 * (time.monotonic() - start)
    # It starts the script behind an interpreter, as a user's own wrapper would.
    wrapper = root.parent / "wrapper.py"
    wrapper.write_text(
        f"import runpy, sys\nsys.argv.insert(1, {str(script)!r})\n"
        f"runpy.run_path({str(TRAINERS / 'disturbed.py')!r}, run_name='__main__')\n"
    )
    variables = {
        "DISTURBED_SLOW": SLOW,
        "DISTURBED_ENDS": KILLED + DECAY,
        "DISTURBED_DIES": KILLED + 13,
        "HF_HUB_OFFLINE": 1,
        "HF_HOME": str(root.parent / "hf"),
        "OMP_NUM_THREADS": 1,
    }
    words = (
        *("run", "huggingface", "--session", "real"),
        *(f"backend.python={python}", f"backend.script={wrapper}"),
        *(f"backend.variables.{name}={value}" for name, value in variables.items()),
        *(f"backend.args.max_steps={LENGTH}", f"backend.args.save_steps={SAVES}"),
        *(f"backend.args.learning_rate={PEAK}", f"backend.args.warmup_steps={WARMUP}"),
        *("backend.args.logging_steps=1", "backend.args.per_device_train_batch_size=4"),
        *(f"slurm.time_limit_min={(warned_s + 20) / 60}", "slurm.warn_before_limit_s=20"),
        *(RESTARTS, COOLDOWNS, *overrides),
    )
    answer = autoexp(*words, root=root, timeout=900, embedded_server=True)
    session = Session.load(root / "real")
    logs = "".join(
        Path(attempt.log).read_text()[-3000:]
        for job in session.jobs.values()
        for attempt in job.attempts
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr + logs
    return session


def planned_rate(step: int, branch: int | None) -> float:
    """The rate that is planned for a step, the first being 0: Hägele et al., 1 - sqrt."""
    if step < WARMUP:
        return PEAK * step / WARMUP
    if branch is None or step < branch:
        return PEAK
    return PEAK * (1 - math.sqrt((step - branch) / DECAY))


def logged(job: JobRecord) -> dict[int, dict[str, Any]]:
    """What the trainer itself has logged, by step; of a cooldown with what its trunk had."""
    final = Path(job.spec.save_dir) / f"checkpoint-{job.iteration}" / "trainer_state.json"
    history = json.loads(final.read_text())["log_history"]
    return {entry["step"]: entry for entry in history if "loss" in entry}


def saved(job: JobRecord, iteration: int) -> bytes:
    return (Path(job.spec.save_dir) / f"checkpoint-{iteration}" / "model.safetensors").read_bytes()


def check(session: Session) -> None:
    """All that has to hold, whatever happened."""
    trunk = session.jobs["huggingface"]
    branches = {at: session.jobs[f"huggingface-cd{at}"] for at in (KILLED, WHOLE)}
    assert {job.verdict for job in session.jobs.values()} == {Verdict.FINISHED}
    assert trunk.iteration == LENGTH

    # The time limit: warned, saved, and continued from there.
    first, *later = trunk.attempts
    assert (first.warned, first.started_from, len(later) >= 1) == (True, 0, True)
    assert later[0].started_from is not None and later[0].started_from >= SLOW // SAVES * SAVES
    assert later[0].started_from in trunk.checkpoints

    # The kill: its next attempt goes on from its own newest checkpoint, not from the branch point.
    died, again = branches[KILLED].attempts
    assert died.state == "FAILED"
    assert (died.started_from, again.started_from) == (KILLED, KILLED + SAVES)
    (only,) = branches[WHOLE].attempts
    assert only.started_from == WHOLE

    of_trunk = logged(trunk)
    for at, job in branches.items():
        assert job.iteration == at + DECAY
        assert saved(job, at) == saved(trunk, at)
        # The same weights, optimizer and data, and the rate still at its peak: the same loss.
        assert logged(job)[at + 1]["loss"] == pytest.approx(of_trunk[at + 1]["loss"], rel=1e-6)
        assert logged(job)[at + DECAY]["loss"] != of_trunk[at + DECAY]["loss"]
    for branch, job in ((None, trunk), *branches.items()):
        rates = {step: entry["learning_rate"] for step, entry in logged(job).items()}
        # A save that SIGTERM asks for comes before its step is logged, and ends the attempt.
        assert set(range(1, (job.iteration or 0) + 1)) - set(rates) <= {later[0].started_from}
        for step, rate in rates.items():
            assert rate == pytest.approx(planned_rate(step - 1, branch), rel=0.01), step


def test_transformers_trainer_keeps_its_plan_through_a_time_limit_and_a_kill(
    tmp_path: Path,
) -> None:
    check(run(tmp_path / "sessions", EXAMPLE, SIZES))


def test_four_processes_under_torchrun_keep_their_plan_through_a_time_limit_and_a_kill(
    tmp_path: Path,
) -> None:
    launched = ("slurm.launcher=torchrun", "slurm.workers_per_node=4")
    gloo = "backend.args.ddp_backend=gloo"
    session = run(tmp_path / "sessions", EXAMPLE, SIZES, gloo, *launched, processes=4)
    check(session)
    for job in session.jobs.values():
        final = Path(job.spec.save_dir) / f"checkpoint-{job.iteration}"
        # A random state for each process.
        assert len(list(final.glob("rng_state_*.pth"))) == 4


def test_trls_own_sft_script_keeps_its_plan_through_a_time_limit_and_a_kill(
    tmp_path: Path,
) -> None:
    python = torch_python("torch", "transformers", "accelerate", "datasets", "trl")
    subprocess.run([python, str(TRAINERS / "tiny_sft.py"), str(tmp_path)], check=True)
    where = "import trl, os; print(os.path.dirname(trl.__file__))"
    package = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True)
    script = Path(package.stdout.splitlines()[-1]) / "scripts" / "sft.py"
    own = (
        f"backend.script_args={{model_name_or_path: {tmp_path}/model, dtype: float32, "
        f"dataset_name: {tmp_path}/data, max_length: 24}}"
    )
    # The example's own, which this script does not take.
    without = [
        f"backend.script_args.{name}=null" for name in ("hidden_size", "layers", "sequence_length")
    ]
    quiet = ("backend.args.bf16=false", "backend.args.gradient_checkpointing=false")
    check(run(tmp_path / "sessions", script, own, *without, *quiet))
