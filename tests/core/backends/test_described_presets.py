"""Presets of trainers that are described in YAML: what their jobs are given, and read.

What the real programs make of it is for tests/trainers/ to say, where it can.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoexp.backends.protocol import Backend, Progress
from autoexp.config.compose import compose
from autoexp.jobs.spec import JobSpec
from autoexp.planning.plan import make_plan
from autoexp.schedulers.launch import payload_spec
from tests.sources import ROOT

SETTINGS = ROOT / "tests" / "data" / "settings"
LENGTHS = ("backend.args.train_iters=2000", "backend.args.save_interval=500")
IN_FILES = ("litgpt", "nanotron", "axolotl")


def planned(preset: str, folder: Path, shape: str = "cosine") -> tuple[JobSpec, JobSpec]:
    """The training and a cooldown of 300 iterations at 1000."""
    words = [f"backend={preset}", "project.name=p", *LENGTHS, "backend.args.lr_warmup_iters=100"]
    if preset in IN_FILES:
        words.append(f"backend.settings.template={SETTINGS / preset}.yaml")
    if preset not in ("litgpt", "axolotl"):
        words.append(f"backend.source={folder}")
    cooldown = f"cooldowns=[{{at: [1000], decay: {{iterations: 300, shape: {shape}}}}}]"
    trunk, branch = make_plan(compose(None, [*words, cooldown]).experiment, folder / "o").jobs
    return trunk, branch


def settings(job: JobSpec, *, resumes: bool = False) -> dict[str, Any]:
    """The file that a job's command names, flat: `train.min_lr`."""
    given = payload_spec(job.machine, job, "key")
    command = (given.resumed or given.command) if resumes else given.command
    (path,) = (word for word in command if word in given.files)
    return dict(_flat(yaml.safe_load(given.files[path]), ""))


def _flat(value: Any, where: str) -> Sequence[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(where, value)]
    return [
        pair for key, inner in value.items() for pair in _flat(inner, f"{where}.{key}".strip("."))
    ]


def test_nanotron_is_told_to_resume_only_where_there_is_a_checkpoint(tmp_path: Path) -> None:
    trunk, branch = planned("nanotron", tmp_path, "minus_sqrt")
    first, again, cooled = settings(trunk), settings(trunk, resumes=True), settings(branch)
    scheduler = "optimizer.learning_rate_scheduler"
    assert first["checkpoints.resume_checkpoint_path"] is None
    assert again == {**first, "checkpoints.resume_checkpoint_path": trunk.save_dir}
    assert first["checkpoints.checkpoints_path"] == trunk.save_dir
    assert first[f"{scheduler}.lr_decay_starting_step"] == first["tokens.train_steps"] == 2000
    assert cooled["tokens.train_steps"] == 1300
    assert (
        cooled[f"{scheduler}.lr_decay_starting_step"],
        cooled[f"{scheduler}.lr_decay_steps"],
    ) == (
        1000,
        300,
    )
    assert cooled[f"{scheduler}.lr_decay_style"] == "1-sqrt"
    # What the user's file says besides stays.
    assert first["tokens.micro_batch_size"] == 2


def test_litgpt_is_given_tokens(tmp_path: Path) -> None:
    trunk, branch = planned("litgpt", tmp_path)
    first, cooled = settings(trunk), settings(branch)
    assert first["train.max_tokens"] == 2000 * 512 * 2048
    assert cooled["train.max_tokens"] == 1300 * 512 * 2048
    assert (first["out_dir"], first["resume"]) == (trunk.save_dir, "auto")
    assert first["optimizer.init_args.weight_decay"] == 0.1


def test_axolotl_cools_down_by_transformers_own_schedule(tmp_path: Path) -> None:
    trunk, branch = planned("axolotl", tmp_path, "minus_sqrt")
    first, cooled = settings(trunk), settings(branch)
    assert (first["lr_scheduler"], cooled["lr_scheduler"]) == (
        "constant_with_warmup",
        "warmup_stable_decay",
    )
    kwargs = {name[20:]: x for name, x in cooled.items() if name.startswith("lr_scheduler_kwargs.")}
    assert kwargs == {"num_decay_steps": 300, "decay_type": "1-sqrt", "min_lr_ratio": 0.0}
    assert cooled["max_steps"] == 1300


def options(job: JobSpec, *_: object) -> dict[str, Any]:
    """The options `--a=b` of a job's command."""
    pairs = (word[2:].partition("=") for word in job.command if word.startswith("--"))
    return {name: yaml.safe_load(value) for name, _, value in pairs}


def warmup_then_cosine(iteration: int, lr: float, warmup: int, end: int, floor: float) -> float:
    """The schedule of nanoGPT, litgpt and OLMo-core's CosWithWarmup, from their sources."""
    if iteration < warmup:
        return lr * iteration / warmup
    if iteration > end:
        return floor
    share = (iteration - warmup) / (end - warmup)
    return floor + (lr - floor) * (1 + math.cos(math.pi * share)) / 2


Rate = Callable[[dict[str, Any], int], float]


def _nanogpt(given: dict[str, Any], at: int) -> float:
    names = ("learning_rate", "warmup_iters", "lr_decay_iters", "min_lr")
    lr, warmup, end, floor = (float(given[name]) for name in names)
    return warmup_then_cosine(at, lr, int(warmup), int(end), floor)


def _litgpt(given: dict[str, Any], at: int) -> float:
    lr, end = given["optimizer.init_args.lr"], given["train.max_tokens"] // (512 * 2048)
    return warmup_then_cosine(at, lr, given["train.lr_warmup_steps"], end, given["train.min_lr"])


def _olmo(given: dict[str, Any], at: int) -> float:
    lr, end = float(given["train_module.optim.lr"]), given["trainer.max_duration"]["value"]
    warmup = given["train_module.scheduler.warmup"]
    return warmup_then_cosine(at, lr, warmup, end, lr * given["train_module.scheduler.alpha_f"])


@pytest.mark.parametrize(
    ("preset", "read", "rate"),
    [
        ("nanogpt", options, _nanogpt),
        ("litgpt", settings, _litgpt),
        ("olmo_core", options, _olmo),
    ],
)
def test_a_cosine_behind_a_warm_up_is_constant_in_a_trunk_and_the_planned_one_in_a_cooldown(
    tmp_path: Path, preset: str, read: Callable[[JobSpec], dict[str, Any]], rate: Rate
) -> None:
    trunk, branch = planned(preset, tmp_path)
    assert branch.branch is not None
    peak = branch.trainer.planned_rate(branch.branch, 1000)
    assert peak is not None
    first, cooled = read(trunk), read(branch)
    for iteration in range(100, 2001, 50):
        assert rate(first, iteration) == pytest.approx(peak, rel=1e-5)
    for iteration in range(1000, 1301, 10):
        wanted = branch.trainer.planned_rate(branch.branch, iteration)
        assert rate(cooled, iteration) == pytest.approx(wanted, abs=0.01 * peak)


LINES = {
    "nanogpt": (b"iter 120: loss 3.1415, time 210.11ms, mfu 12.30%", 120, 3.1415, None),
    "litgpt": (
        b"Epoch 1 | iter 80 step 20 | loss train: 9.512, val: n/a | iter time: 801.2 ms (step)"
        b" remaining time: 1:02:03",
        20,
        9.512,
        None,
    ),
    "nanotron": (
        b"11/29/2026 12:00:00 [INFO|DP=0|PP=1|TP=0]: iteration: 10 / 15 | consumed_tokens: 4.1K | "
        b"elapsed_time_per_iteration_ms: 1.2K | lm_loss: 5.55 | lr: 0.00025 | grad_norm: 0.5",
        10,
        5.55,
        0.00025,
    ),
    "olmo_core": (b"2026-11-29 12:00:00 [step=40/1000,epoch=1,eta=10m]", 40, None, None),
    "axolotl": ("  7%|▋         | 70/1000 [00:10<02:11,  7.1it/s]".encode(), 70, None, None),
}


@pytest.mark.parametrize("preset", LINES)
def test_a_progress_line_is_read(tmp_path: Path, preset: str) -> None:
    line, iteration, loss, rate = LINES[preset]
    trainer: Backend = planned(preset, tmp_path)[0].trainer
    found = trainer.progress(line)
    assert isinstance(found, Progress)
    assert (found.iteration, found.loss, found.learning_rate) == (iteration, loss, rate)


# Where the real program's parser is asked, or the program itself runs.
CHECKED = {
    "axolotl": "tests/trainers/test_settings_parsers.py",
    "demo": "tests/flows/test_session_flow.py",
    "huggingface": "tests/trainers/test_transformers_parser.py",
    "litgpt": "tests/trainers/test_settings_parsers.py",
    "megatron": "tests/trainers/test_megatron_parser.py",
    "megatron_8b": "tests/trainers/test_megatron_parser.py",
    "nanogpt": "tests/trainers/test_described_parsers.py",
    "nanotron": "tests/trainers/test_settings_parsers.py",
    "olmo_core": "tests/trainers/test_described_parsers.py",
    "schedules_and_scaling": "tests/trainers/test_described_parsers.py",
    "torchtitan": "tests/trainers/test_described_parsers.py",
}


def test_every_preset_is_checked_against_its_trainer_or_says_that_it_is_not() -> None:
    for path in (ROOT / "configs" / "backend").glob("*.yaml"):
        said = "not checked" in path.read_text().lower()
        assert said == (path.stem not in CHECKED), path.stem
    for name, test in CHECKED.items():
        assert name in (ROOT / test).read_text()
