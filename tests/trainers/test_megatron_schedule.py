"""Branches and baselines on Megatron-LM's own parser, validation, scheduler and its state."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from autoexp.config.experiment import Experiment
from autoexp.jobs.spec import JobSpec
from autoexp.planning.plan import make_plan
from tests.core.backends.conformance.megatron import ARGS
from tests.trainers.real import PARSERS, clone_at, torch_python

SCRIPT = "pretrain_gpt.py"
PROGRAM = PARSERS / "megatron_schedule.py"
SHAPES: tuple[dict[str, Any], ...] = (
    *({"shape": shape} for shape in ("minus_sqrt", "linear", "cosine", "exponential")),
    {"shape": "linear", "hold": 0.25},
)
OWN: dict[str, dict[str, Any]] = {
    "as its parent": {},
    "other data": {"data_path": ["/data/code"]},
    "other data from its start": {
        "data_path": ["/data/code"],
        "phase_transition_iterations": "500",
    },
    "longer sequences": {"seq_length": 128, "max_position_embeddings": 128},
    "a larger batch": {"global_batch_size": 16},
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("megatron")
    return clone_at("AUTOEXP_TEST_MEGATRON", folder, "megatron", SCRIPT)


def planned(checkout: Path, **content: Any) -> tuple[JobSpec, ...]:
    """A trunk of 1000 iterations of 8 samples of 64 tokens, behind 50 of warm-up."""
    kept = {key: value for key, value in ARGS.items() if key not in ("mock_data", "data_path")}
    lengths = {"train_iters": 1000, "save_interval": 100, "lr_warmup_iters": 50}
    sizes = {"seq_length": 64, "max_position_embeddings": 64, "global_batch_size": 8}
    args = {**kept, **lengths, **sizes, "min_lr": 1e-5, "data_path": ["/data/web"]}
    whole = {
        "project": {"name": "p"},
        "backend": {"kind": "megatron", "source": str(checkout), "args": args},
        "slurm": {"kind": "local"},
        **content,
    }
    return make_plan(Experiment.model_validate(whole), Path("/out")).jobs


def asked(checkout: Path, *cases: tuple[JobSpec | None, JobSpec, int, int]) -> list[dict[str, Any]]:
    python = torch_python("torch", "typing_extensions")
    lines = [
        [trunk and list(trunk.command[2:]), list(job.command[2:]), at, end]
        for trunk, job, at, end in cases
    ]
    answer = subprocess.run(
        [python, str(PROGRAM), str(checkout)],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    told = [line for line in answer.stdout.splitlines() if line.startswith("READ ")]
    return [json.loads(line.removeprefix("READ ")) for line in told]


def follows_its_plan(job: JobSpec, rates: list[float], at: int) -> None:
    assert job.decay is not None
    for iteration, rate in enumerate(rates, start=at):
        wanted = job.trainer.planned_rate(job.decay, iteration)
        assert rate == pytest.approx(wanted, rel=0.01, abs=1e-12), (job.name, iteration)


def test_every_shape_behind_the_trunks_state_follows_the_planned_curve(checkout: Path) -> None:
    """Whatever else a branch changes, with and without iterations at the peak before."""
    branches = [
        {
            "at": [500],
            "name": f"{number}-{place}-{stable or 0}",
            "stable": stable,
            "decay": {**shape, "iterations": 40},
            "backend": {"args": own},
        }
        for number, own in enumerate(OWN.values())
        for place, shape in enumerate(SHAPES)
        for stable in (None, 30)
    ]
    trunk, *jobs = planned(checkout, cooldowns=branches)
    found = asked(checkout, *((trunk, job, 500, job.target_iteration or 0) for job in jobs))
    assert len(found) == len(jobs) == len(OWN) * len(SHAPES) * 2
    for job, read in zip(jobs, found, strict=True):
        follows_its_plan(job, read["rates"], 500)
        assert read["finetune"] is False
        assert read["train_iters"] == job.target_iteration


def test_data_and_length_of_a_branch_are_what_megatron_reads(checkout: Path) -> None:
    """Where its sampler begins in new data is said, in samples of the branch's own length."""
    branches = [
        {"at": [500], "name": f"b{number}", "decay": {"iterations": 40}, "backend": {"args": own}}
        for number, own in enumerate(OWN.values())
    ]
    trunk, *jobs = planned(checkout, cooldowns=branches)
    found = asked(checkout, *((trunk, job, 500, 501) for job in jobs))
    read = dict(zip(OWN, found, strict=True))
    lengths = [(each["seq_length"], each["global_batch_size"]) for each in read.values()]
    assert lengths == [(64, 8)] * 3 + [(128, 8), (64, 16)]
    assert [each["data_path"] for each in read.values()] == [
        ["/data/web"],
        ["/data/code"],
        ["/data/code"],
        ["/data/web"],
        ["/data/web"],
    ]
    assert [each["begins"] for each in read.values()] == [4000, 4000, 0, 4000, 4000]


def test_a_chain_goes_on_from_its_branchs_state(checkout: Path) -> None:
    """WSD-S, and a chain of lengths: the rate goes up to the peak, then down again."""
    longer = {"seq_length": 128, "max_position_embeddings": 128}
    then = {"stable": 30, "decay": {"iterations": 20}, "backend": {"args": longer}}
    chain = {"at": [500], "decay": {"iterations": 40}, "then": [then]}
    _, first, second = planned(checkout, cooldowns=[chain])
    (read,) = asked(checkout, (first, second, 540, 590))
    follows_its_plan(second, read["rates"], 540)
    assert read["seq_length"] == 128


def test_a_baseline_follows_its_plan_from_its_first_step(checkout: Path) -> None:
    entries = [
        {"decay": {**shape, **length}, "name": f"b{place}-{len(length)}", "totals": [300]}
        for place, shape in enumerate(SHAPES)
        for length in ({}, {"fraction": 0.2})
    ]
    _, *jobs = planned(checkout, baselines=entries)
    found = asked(checkout, *((None, job, 0, 300) for job in jobs))
    for job, read in zip(jobs, found, strict=True):
        follows_its_plan(job, read["rates"], 0)
