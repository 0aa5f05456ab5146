"""The planned curve of each decay, and what the demo's trainer logs of it."""

import ast
import logging
import math
import os
import re
import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Optional

import pytest
from pydantic import ValidationError

from autoexp.backends.decay import decayed
from autoexp.backends.demo import DemoBackend
from autoexp.backends.protocol import Branch
from autoexp.config.experiment import Experiment
from autoexp.demo import model as language
from autoexp.demo import trainer
from autoexp.planning.plan import make_plan
from autoexp.rules.actions import Decay
from tests.core.backends.conformance.megatron import ARGS, STAND_IN

SMALL = {"hidden_size": 8, "embedding_size": 4, "seq_length": 3, "global_batch_size": 8}
RATE = re.compile(r"iteration +(\d+)/.* learning rate: (\S+)")
SHAPES: dict[str, dict[str, Any]] = {
    "minus_sqrt": {"shape": "minus_sqrt"},
    "linear": {"shape": "linear"},
    "linear to a floor": {"shape": "linear", "min_lr": 2e-3, "hold": 0.25},
    "cosine": {"shape": "cosine", "min_lr": 1e-3},
    "exponential": {"shape": "exponential"},
    "power": {"shape": "power", "power": 3},
    "points": {"shape": "points", "points": [[0, 1], [0.5, 0.2], [1, 0]], "hold": 0.1},
}


@pytest.mark.parametrize("stable", [None, 10])
@pytest.mark.parametrize("decay", SHAPES.values(), ids=SHAPES)
def test_the_logged_rate_is_the_planned_one_at_every_step(
    decay: dict[str, Any], stable: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    spoken = language.draw_language(1)
    monkeypatch.setattr(language, "draw_language", lambda _seed, _kind="web": spoken)
    args = {"train_iters": 20, "save_interval": 10, "log_interval": 1, "lr_warmup_iters": 0}
    content = {
        "project": {"name": "p"},
        "backend": {"kind": "demo", "args": {**args, **SMALL, "sleep_per_iteration_ms": 0}},
        "slurm": {"kind": "local"},
        "cooldowns": [
            {"at": [20], "stable": stable, "decay": {**decay, "iterations": 40 - (stable or 0)}}
        ],
    }
    trunk, job = make_plan(Experiment.model_validate(content), tmp_path).jobs
    assert trainer.main([*trunk.command[3:]]) == 0
    Path(job.output_dir).mkdir(parents=True)
    Path(trunk.save_dir).rename(job.save_dir)
    capsys.readouterr()
    assert trainer.main([*job.command[3:]]) == 0
    logged = {int(x[1]): float(x[2]) for x in RATE.finditer(capsys.readouterr().out)}
    assert sorted(logged) == list(range(21, 61))
    assert job.branch is not None
    for iteration, rate in logged.items():
        planned = job.trainer.planned_rate(job.branch, iteration)
        assert rate == pytest.approx(planned, rel=0.01, abs=1e-9)


@pytest.mark.parametrize("decay", SHAPES.values(), ids=SHAPES)
def test_a_baseline_logs_the_planned_rate_at_every_step_and_goes_on_by_itself(
    decay: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Ended by a signal on its way, it resumes from its own checkpoint by the same command."""
    spoken = language.draw_language(1)
    monkeypatch.setattr(language, "draw_language", lambda _seed, _kind="web": spoken)
    args = {"train_iters": 60, "save_interval": 10, "log_interval": 1, "lr_warmup_iters": 8}
    content = {
        "project": {"name": "p"},
        "backend": {"kind": "demo", "args": {**args, **SMALL, "sleep_per_iteration_ms": 0}},
        "slurm": {"kind": "local"},
        "baselines": [{"decay": decay}, {"name": "wsd", "decay": {**decay, "fraction": 0.5}}],
    }
    for job in make_plan(Experiment.model_validate(content), tmp_path).jobs[1:]:
        for fails in (["--fail-at-iteration", "35"], []):
            with pytest.raises(RuntimeError) if fails else nullcontext():
                trainer.main([*job.command[3:], *fails])
        logged = [(int(x[1]), float(x[2])) for x in RATE.finditer(capsys.readouterr().out)]
        assert [at for at, _ in logged] == [*range(1, 35), *range(31, 61)]
        assert job.baseline is not None
        for iteration, rate in logged:
            planned = job.trainer.planned_rate(job.baseline, iteration)
            assert rate == pytest.approx(planned, rel=0.01, abs=1e-9)


def test_a_decay_falls_from_the_peak_to_its_end_and_never_rises() -> None:
    for decay in SHAPES.values():
        read = Decay.model_validate(decay)
        branch = Branch(
            iteration=100, decay_iterations=40, shape=read.shape, min_lr=read.min_lr or 0.0,
            power=read.power, points=read.points, hold_iterations=round(read.hold * 40),
        )  # fmt: skip
        rates = [decayed(1e-2, branch, iteration) or 0.0 for iteration in range(100, 141)]
        assert (rates[0], rates[-1]) == (pytest.approx(1e-2), branch.min_lr)
        assert sorted(rates, reverse=True) == rates
        assert rates[branch.falls_until - 100] == branch.min_lr


@pytest.mark.parametrize(
    ("decay", "why"),
    [
        ({"power": 2}, "`power` is for the shape `power`"),
        ({"shape": "points"}, "go together"),
        ({"points": [[0, 1], [1, 0]]}, "go together"),
        ({"shape": "points", "points": [[0, 1], [0.5, 0]]}, "go from 0 to 1"),
        ({"shape": "points", "points": [[0, 1], [0, 0.5], [1, 0]]}, "each behind the one before"),
        ({"shape": "points", "points": [[0, 1], [1, 2]]}, "from 0 to 1"),
        ({"hold": 1.0}, "less than 1"),
    ],
)
def test_a_decay_that_is_no_curve_is_refused(decay: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(why)):
        Decay.model_validate(decay)


def test_a_shape_that_a_trainer_has_not_is_refused_with_those_that_it_has() -> None:
    class Fewer(DemoBackend):
        SHAPES: ClassVar = {"linear": "linear"}
        HOLDS = False

    branch = Branch(iteration=100, decay_iterations=40, shape="power", min_lr=0, hold_iterations=4)
    assert Fewer().refusals(branch) == [
        "the trainer has no decay of the shape power; there are: linear",
        "the trainer ends with its decay, and has no `hold`",
    ]


MEGATRON = os.environ.get("AUTOEXP_TEST_MEGATRON")
SOURCE = "megatron/core/optimizer_param_scheduler.py"


def megatrons_scheduler() -> Any:
    """The class out of Megatron's source, alone: the rest of the module wants torch."""
    assert MEGATRON is not None
    shown = ["git", "-C", MEGATRON, "show", f"HEAD:{SOURCE}"]
    tree = ast.parse(subprocess.run(shown, check=True, capture_output=True, text=True).stdout)
    (found,) = [x for x in tree.body if getattr(x, "name", "") == "OptimizerParamScheduler"]
    names: dict[str, Any] = {
        "math": math,
        "Optional": Optional,
        "logging": logging,
        "logger": logging,
        "torch": SimpleNamespace(Tensor=str),
        "log_single_rank": lambda *_: None,
    }
    exec(compile(ast.Module([found], []), SOURCE, "exec"), names)  # noqa: S102
    return names["OptimizerParamScheduler"]


def option(command: tuple[str, ...], name: str) -> float:
    return float(command[command.index(name) + 1])


@pytest.mark.skipif(MEGATRON is None, reason="no clone of Megatron-LM")
@pytest.mark.parametrize("batch", [8, 16])
@pytest.mark.parametrize(
    "decay", ["minus_sqrt", "linear", "cosine", "exponential", "linear to a floor"]
)
def test_megatrons_own_scheduler_follows_the_planned_curve(decay: str, batch: int) -> None:
    args = {**ARGS, "train_iters": 1000, "save_interval": 100, "lr_warmup_iters": 50}
    shape = {k: v for k, v in SHAPES[decay].items() if k != "min_lr"}
    content = {
        "project": {"name": "p"},
        "backend": {"kind": "megatron", "source": str(STAND_IN), "args": args},
        "slurm": {"kind": "local"},
        "cooldowns": [
            {
                "at": [500],
                "decay": {**shape, "iterations": 40},
                "backend": {"args": {"global_batch_size": batch}},
            }
        ],
    }
    _, job = make_plan(Experiment.model_validate(content), Path("/out")).jobs
    command, lr = job.command, option(job.command, "--lr")
    group: dict[str, Any] = {"lr": 0.0, "weight_decay": 0.0}
    scheduler = megatrons_scheduler()(
        SimpleNamespace(param_groups=[group]),
        init_lr=0.0,
        max_lr=lr,
        min_lr=option(command, "--min-lr"),
        lr_warmup_steps=option(command, "--lr-warmup-iters") * batch,
        lr_decay_steps=option(command, "--lr-decay-iters") * batch,
        lr_decay_style="WSD",
        start_wd=0.0,
        end_wd=0.0,
        wd_incr_steps=1,
        wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
        wsd_decay_steps=option(command, "--lr-wsd-decay-iters") * batch,
        lr_wsd_decay_style=command[command.index("--lr-wsd-decay-style") + 1],
    )
    scheduler.step(500 * 8)  # as its state in the checkpoint says
    assert job.branch is not None
    for iteration in range(500, 541):
        planned = job.trainer.planned_rate(job.branch, iteration)
        assert group["lr"] == pytest.approx(planned, rel=0.01, abs=1e-9 * lr)
        scheduler.step(batch)
