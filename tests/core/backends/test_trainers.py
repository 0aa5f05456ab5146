"""Command lines of torchtitan, Hugging Face's Trainer and described ones, and what is refused."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from autoexp.backends.command.placeholders import change_options, pattern_of, substitute
from autoexp.backends.huggingface.backend import HuggingFaceBackend
from autoexp.config.compose import compose
from autoexp.config.experiment import Experiment
from autoexp.errors import BadInput
from autoexp.model import COMPOSING
from autoexp.planning.plan import Plan, make_plan
from tests.core.backends.conformance.command import MARKED, TRACKED
from tests.core.backends.conformance.huggingface import HUGGINGFACE
from tests.core.backends.conformance.torchtitan import TORCHTITAN
from tests.core.backends.conformance.trainer import Trainer, options

LENGTHS = {"train_iters": 300, "save_interval": 100, "lr": 1e-3}


def planned(trainer: Trainer, branching: dict[str, Any] | None = None, **backend: Any) -> Plan:
    content = {**trainer.configuration, "backend": {**trainer.backend, **backend}}
    if branching is not None:
        content["cooldowns"] = [branching]
    return make_plan(Experiment.model_validate(content), Path("/out"))


def refusal(backend: str, *overrides: str) -> str:
    words = [
        "project.name=t",
        f"backend={backend}",
        "cooldowns=[{at: [200], decay: {iterations: 50}}]",
    ]
    with pytest.raises(BadInput) as refused:
        make_plan(compose(None, [*words, *overrides]).experiment, Path("/out"))
    return str(refused.value)


# torchtitan: the command lines were read by ConfigManager of torchtitan 0.2.2, and its scheduler
# kept the trunk's rate and began the branch's decay one step behind the branch point.


def test_torchtitans_trunk_keeps_its_rate_and_its_branch_decays_to_its_own_end() -> None:
    plan = planned(TORCHTITAN)
    trunk, branch = options(plan.trunk.command), options(plan.cooldowns[0].command)
    assert (trunk["--training.steps"], trunk["--lr_scheduler.decay_ratio"]) == ("300", "0.0")
    assert branch["--training.steps"] == branch["--lr_scheduler.total_steps"] == "150"
    assert round(150 * float(branch["--lr_scheduler.decay_ratio"])) == 50
    assert branch["--lr_scheduler.decay_type"] == "sqrt"
    assert branch["--job.dump_folder"] == "/out/t-cd100/checkpoints"


@pytest.mark.parametrize("length", range(1, 400, 7))
def test_torchtitans_rounded_ratio_is_the_decays_length_again(length: int) -> None:
    plan = planned(TORCHTITAN, {"at": [300], "decay": {"iterations": length}})
    ratio = float(options(plan.cooldowns[0].command)["--lr_scheduler.decay_ratio"])
    assert round((300 + length) * ratio) == length


def test_torchtitans_defaults_that_lose_what_a_branch_needs_are_overridden() -> None:
    for job in planned(TORCHTITAN).jobs:
        found = options(job.command)
        assert {"--checkpoint.enable", "--checkpoint.no_last_save_model_only"} <= set(found)
        assert "--checkpoint.no_initial_load_model_only" in found
        assert found["--checkpoint.keep_latest_k"] == "0"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("backend.args.checkpoint.keep_latest_k=3", "backend.args.checkpoint.keep_latest_k: set by "
         "autoexp (always 0: its default of 10 deletes branch points)"),
        ("backend.args.checkpoint.last_save_model_only=true", "the last checkpoint could not be"),
        ("backend.args.lr_scheduler.decay_ratio=0.1", "the training keeps its rate"),
        ("backend.args.checkpoint.intervall=3", "did you mean `interval`?"),
        ("backend.args.parallelism.tensor_parallel_degree=2", "1 processes are no multiple of"),
        ("backend.args.lr_scheduler.warmup_steps=300", "inside the warm-up of 300 steps"),
        ("backend.args.job.config_file=/no/such.toml", "/no/such.toml: no such file"),
    ],
)  # fmt: skip
def test_what_torchtitan_would_lose_silently_is_refused(override: str, expected: str) -> None:
    assert expected in refusal("torchtitan", override)


# Hugging Face


def test_the_trainers_branch_goes_on_with_a_decay_of_its_own() -> None:
    plan = planned(HUGGINGFACE, {"at": [100], "decay": {"iterations": 50, "min_lr": 1e-4}})
    trunk, branch = options(plan.trunk.command), options(plan.cooldowns[0].command)
    assert (trunk["--max_steps"], trunk["--lr_scheduler_type"]) == ("300", "constant_with_warmup")
    assert (branch["--max_steps"], branch["--lr_scheduler_type"]) == ("150", "warmup_stable_decay")
    decay = json.loads(branch["--lr_scheduler_kwargs"])
    assert decay == {"num_decay_steps": 50, "decay_type": "1-sqrt", "min_lr_ratio": 0.1}
    assert branch["--output_dir"] == "/out/t-cd100/checkpoints"
    # A NaN would be averaged away, and a warning would lose work.
    assert branch["--logging_nan_inf_filter"] == "false"
    assert branch["--enable_jit_checkpoint"] == "true"


def test_a_training_without_cooldowns_may_have_a_schedule_of_its_own() -> None:
    words = ["backend=huggingface", "project.name=p", "backend.args.lr_scheduler_type=cosine"]
    own = "backend.args.lr_scheduler_kwargs={num_cycles: 0.5}"
    (job,) = make_plan(compose(None, [*words, own, "cooldowns=[]"]).experiment, Path("/out")).jobs
    told = options(job.command)
    assert told["--lr_scheduler_type"] == "cosine"
    assert json.loads(told["--lr_scheduler_kwargs"]) == {"num_cycles": 0.5}
    baseline = "baselines=[{totals: [300], decay: {fraction: 0.2, shape: linear}}]"
    plan = make_plan(compose(None, [*words, "cooldowns=[]", baseline]).experiment, Path("/out"))
    assert options(plan.jobs[1].command)["--lr_scheduler_type"] == "warmup_stable_decay"


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        # 1000 samples in passes of 32 on each of two workers are 16, the last not full.
        (["backend.args.gradient_accumulation_steps=1"], 3 * 16),
        (["backend.args.gradient_accumulation_steps=5"], 3 * 4),
        (
            [
                "backend.args.gradient_accumulation_steps=5",
                "+backend.args.dataloader_drop_last=true",
            ],
            3 * 3,
        ),
        (["backend.samples=1"], 3),
    ],
)
def test_a_length_in_epochs_is_counted_as_the_trainer_counts(
    overrides: list[str], steps: int
) -> None:
    words = ["backend=huggingface", "project.name=p", "cooldowns=[]", "backend.args.warmup_steps=0"]
    words += ["slurm=local_cluster", "slurm.gpus_per_node=2", "slurm.launcher=torchrun"]
    length = ["backend.samples=1000", "backend.args.max_steps=3 epochs"]
    (job,) = make_plan(compose(None, [*words, *length, *overrides]).experiment, Path("/out")).jobs
    assert options(job.command)["--max_steps"] == str(steps)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("backend.args.lr_scheduler_type=cosine", "leave it out where cooldowns branch"),
        ("backend.args.num_train_epochs=3", "write `max_steps: 3 epochs`, and the data"),
        ("backend.args.max_steps='3 epochs'", "how many samples the data set has"),
        ("backend.args.save_total_limit=3", "save_total_limit 3 deletes its checkpoint"),
        ("backend.args.save_only_model=true", "a branch needs the optimizer"),
        ("backend.args.resume_from_checkpoint=/x", "the last checkpoint in the job's own folder"),
        ("backend.args.weight_dcay=1", "did you mean `weight_decay`?"),
        ("backend.args.hub_token=abc", "looks like a secret"),
        ("backend.script_args.output_dir=/x", "backend.script_args.output_dir: set by autoexp"),
        ("backend.script=/no/such.py", "/no/such.py: no such file"),
        ("backend.args.warmup_steps=250", "inside the warm-up of 250 steps"),
    ],
)
def test_what_the_trainer_would_lose_is_refused(override: str, expected: str) -> None:
    assert expected in refusal("huggingface", override)


# Described trainers


def test_a_described_trainers_branch_changes_what_its_yaml_says() -> None:
    plan = planned(TRACKED)
    assert plan.trunk.command[2:] == ("--steps", "300", "--out", "/out/t/checkpoints")
    assert plan.cooldowns[0].command[2:] == (
        *("--steps", "150", "--out", "/out/t-cd100/checkpoints"),
        *("--schedule", "minus_sqrt", "--decay", "50"),
    )


def test_an_argument_of_a_described_trainer_may_be_called_as_a_word_of_python() -> None:
    args = {"train_iters": 300, "save_interval": 100, "import": "numpy", "lambda": 2}
    command = ["train", "--import={import}", "--twice={train_iters * 2}", "{lambda}"]
    found = planned(TRACKED, args=args, command=command).trunk.command
    assert found == ("train", "--import=numpy", "--twice=600", "2")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"command": ["x", "{save_dri}"]}, "nothing is called {save_dri}; did you mean "
         "`{save_dir}`?"),
        ({"cooldown": {"--x": "{decay}"}}, "`cooldown`: nothing is called {decay}"),
        ({"args": {"train_iters": 300, "save_interval": 100, "depth": 3}}, "nothing reads "
         "`args.depth`: write {depth}"),
        ({"args": {"train_iters": 300, "save_interval": 100, "api_key": "x"}}, "like a secret"),
        ({"log_line": "it ([0-9]+)"}, "has no group `(?P<iteration>"),
        ({"log_line": "(?P<iteration>[0-9]+) (?P<los>x)"}, "group `los`: there are iteration"),
        ({"log_line": "("}, "is not a regular expression"),
        ({"saves": {"name": "step-{iteration}"}}, "nothing tells a complete checkpoint"),
        ({"saves": {"name": "step", "renamed": True}}, "has to contain {iteration} once"),
        ({"variables": {"WANDB_API_KEY": "x"}}, "`WANDB_API_KEY` looks like a secret"),
    ],
)  # fmt: skip
def test_a_description_that_cannot_work_is_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError) as refused:
        planned(TRACKED, **changes)
    assert expected in str(refused.value)


def test_a_cooldown_is_refused_without_a_word_on_it_or_with_a_shape_the_trainer_lacks() -> None:
    with pytest.raises(BadInput, match="does not define what a cooldown changes"):
        planned(MARKED, cooldown={})
    with pytest.raises(BadInput, match="no decay of the shape minus_sqrt; there are: linear"):
        planned(MARKED, shapes={"linear": "lin"})


def test_a_shape_that_no_cooldown_has_is_refused_and_a_curve_of_ones_own_goes_by_points() -> None:
    own = {**TRACKED.configuration, "defaults": ["_self_"]}
    own["backend"] = {**TRACKED.backend, "shapes": {"wsd": "wsd"}}
    with pytest.raises(ValidationError, match=r"described by `points`: `shapes: \{points: wsd\}`"):
        Experiment.model_validate(own, context=COMPOSING)
    curve = {"shape": "points", "points": [[0, 1], [0.5, 0.2], [1, 0]], "iterations": 50}
    plan = planned(TRACKED, {"at": [100], "decay": curve}, shapes={"points": "wsd"}, args=LENGTHS)
    (cooldown,) = plan.cooldowns
    assert options(cooldown.command)["--schedule"] == "wsd"
    assert cooldown.branch is not None
    rates = [cooldown.trainer.planned_rate(cooldown.branch, at) for at in (100, 125, 150)]
    assert rates == pytest.approx([1e-3, 2e-4, 0])


@pytest.mark.parametrize("text", ["$(id)", "a b", "'; rm -rf /", "{train_iters}", "${oc.env:HOME}"])
def test_a_value_arrives_as_one_word_and_is_never_filled_in_again(text: str) -> None:
    plan = planned(
        TRACKED,
        command=["t", "--note={note}", "{python}", '{"a": {"b": 1}}'],
        args={"train_iters": 300, "save_interval": 100, "note": text},
    )
    assert plan.trunk.command == ("t", f"--note={text}", sys.executable, '{"a": {"b": 1}}')


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"--lr": 0.1}, ["t", "--lr", "0.1", "--wd=1", "steps=5", "--flag"]),
        ({"--wd": 2}, ["t", "--lr", "-1e-3", "--wd=2", "steps=5", "--flag"]),
        ({"steps": 7}, ["t", "--lr", "-1e-3", "--wd=1", "steps=7", "--flag"]),
        ({"--flag": None}, ["t", "--lr", "-1e-3", "--wd=1", "steps=5"]),
        ({"--lr": None}, ["t", "--wd=1", "steps=5", "--flag"]),
        ({"--new": True}, ["t", "--lr", "-1e-3", "--wd=1", "steps=5", "--flag", "--new"]),
        ({"new.key": 1}, ["t", "--lr", "-1e-3", "--wd=1", "steps=5", "--flag", "new.key=1"]),
        ({"--none": None}, ["t", "--lr", "-1e-3", "--wd=1", "steps=5", "--flag"]),
    ],
)
def test_options_are_set_added_and_removed(options: dict[str, Any], expected: list[str]) -> None:
    command = ["t", "--lr", "-1e-3", "--wd=1", "steps=5", "--flag"]
    assert change_options(command, options) == expected


def test_names_of_checkpoints_are_matched_whole_and_literally() -> None:
    assert pattern_of("*-step={iteration}*").fullmatch("llama-step=120-last")
    assert pattern_of("step.{iteration}").fullmatch("stepx120") is None
    assert pattern_of("{iteration}").fullmatch("120-old") is None
    assert substitute("{a}{b}", {"a": "{b}", "b": "x"}) == "{b}x"


def resumed_from(directory: Path, **changes: Any) -> str | None:
    """What the script is told to resume from, when the job's command runs."""
    script = directory / "train.py"
    script.write_text("import sys; print(sys.argv[1:])")
    backend = HuggingFaceBackend.model_validate(
        {
            "script": str(script),
            "args": {"max_steps": 300, "save_steps": 100, "learning_rate": 1e-3},
            **changes,
        }
    )
    command = backend.trunk_command(directory / "a save dir")
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    words: list[str] = ast.literal_eval(answer.stdout)
    assert words[words.index("--output_dir") + 1] == str(directory / "a save dir")
    told = "--resume_from_checkpoint"
    return words[words.index(told) + 1] if told in words else None


def test_a_script_is_told_its_last_whole_checkpoint_when_it_starts(tmp_path: Path) -> None:
    assert resumed_from(tmp_path) is None
    save_dir = tmp_path / "a save dir"
    for name in ("checkpoint-90", "checkpoint-100", "checkpoint-200", "checkpoint-300", "runs"):
        (save_dir / name).mkdir(parents=True)
    assert resumed_from(tmp_path) is None
    for name in ("checkpoint-90", "checkpoint-100", "checkpoint-300"):
        (save_dir / name / "trainer_state.json").write_text("{}")
    (save_dir / "checkpoint-300" / "checkpoint-is-incomplete.txt").touch()
    assert resumed_from(tmp_path) == str(save_dir / "checkpoint-100")
    assert resumed_from(tmp_path, resume=False) is None


def test_another_launcher_than_python_is_given_the_script_as_it_is() -> None:
    backend = HuggingFaceBackend.model_validate(
        {
            "script": "/train.py",
            "python": "/usr/bin/torchrun",
            "args": {"max_steps": 300, "save_steps": 100, "learning_rate": 1e-3},
        }
    )
    assert backend.trunk_command(Path("/out"))[:2] == ("/usr/bin/torchrun", "/train.py")
