"""Megatron-LM: what its command lines say, what is refused beforehand, and what the stand-in says.

The stand-in refuses what Megatron refuses, so each command line is run with it too.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autoexp.backends.megatron import known_arguments, release, release_names
from autoexp.backends.megatron.compatibility import compare
from autoexp.backends.megatron.source_reader import options_in
from autoexp.backends.protocol import FoundCheckpoint
from autoexp.config.compose import Composed, compose
from autoexp.errors import BadInput
from autoexp.planning.plan import Plan, make_plan
from tests.core.backends.conformance.megatron import STAND_IN
from tests.core.backends.conformance.trainer import options

SEED = (
    *("project=test_cooldown", "backend=megatron", f"backend.source={STAND_IN}"),
    *("backend.args.train_iters=200", "backend.args.save_interval=100"),
)
COOLDOWN = "cooldowns=[{at: [100], decay: {iterations: 40}}]"


def composed(*overrides: str) -> Composed:
    return compose(None, [*SEED, *overrides])


def planned(*overrides: str, root: Path = Path("/out")) -> Plan:
    return make_plan(composed(COOLDOWN, *overrides).experiment, root)


def refusal(*overrides: str) -> str:
    with pytest.raises(BadInput) as refused:
        planned(*overrides)
    return str(refused.value)


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        env={**os.environ, "STAND_IN_SLEEP_MS": "0", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


# Command lines


def test_a_branch_decays_from_its_own_directory_with_the_trunks_rates() -> None:
    plan = planned("backend.args.min_lr=1e-5")
    trunk, branch = options(plan.trunk.command), options(plan.cooldowns[0].command)
    assert branch["--load"] == branch["--save"] == "/out/test_cooldown-cd100/checkpoints"
    assert trunk["--load"] == trunk["--save"] == "/out/test_cooldown/checkpoints"
    changed = {name: value for name, value in branch.items() if trunk.get(name) != value}
    assert changed == {
        "--save": "/out/test_cooldown-cd100/checkpoints",
        "--load": "/out/test_cooldown-cd100/checkpoints",
        "--exit-on-missing-checkpoint": "",
        "--lr-decay-style": "WSD",
        "--lr-wsd-decay-style": "minus_sqrt",
        "--lr-wsd-decay-iters": "40",
        "--train-iters": "140",
        "--lr-decay-iters": "140",
    }
    assert (trunk["--min-lr"], branch["--min-lr"]) == ("1e-05", "1e-05")
    for command in (trunk, branch):
        assert "--override-opt_param-scheduler" in command
        never = {"--finetune", "--no-load-optim", "--no-load-rng", "--ckpt-step"}
        assert not never & set(command)


def test_a_batch_size_ramp_is_counted_in_samples_which_is_all_that_megatron_takes_with_it() -> None:
    plan = planned("backend.args.rampup_batch_size=[8,8,800]", "backend.args.global_batch_size=32")
    batches = composed("backend.args.rampup_batch_size=[8,8,800]").experiment.trainer.batches(1)
    assert batches is not None
    branch = options(plan.cooldowns[0].command)
    assert branch["--train-samples"] == str(batches.samples(140))
    assert branch["--lr-wsd-decay-samples"] == str(batches.samples(140) - batches.samples(100))
    assert not any(name.endswith("-iters") and "eval" not in name for name in branch)


def test_arguments_without_a_field_pass_through_as_they_are() -> None:
    command = options(
        planned(
            "backend.args.qk_layernorm=true",
            "backend.args.use_flash_attn=false",
            "backend.args.norm_epsilon=1e-6",
            "backend.args.data_path=[0.5,/a,0.5,/b]",
            "backend.args.mock_data=false",
        ).trunk.command
    )
    assert command["--qk-layernorm"] == ""
    assert "--use-flash-attn" not in command
    assert command["--norm-epsilon"] == "1e-06"
    assert command["--data-path"] == "0.5 /a 0.5 /b"


@pytest.mark.parametrize("preset", ["megatron", "megatron_8b"])
def test_a_preset_composes_and_its_arguments_are_megatrons(preset: str) -> None:
    overrides = [f"backend={preset}", f"backend.source={STAND_IN}", "backend.args.data_path=[/d]"]
    extra = ["backend.args.mock_data=false"]
    experiment = compose(None, [*overrides, *extra, "project.name=p", "cooldowns=[]"]).experiment
    trunk = experiment.trainer.trunk_command(Path("/out"))
    answer = run(sys.executable, str(STAND_IN / "pretrain_gpt.py"), "--help")
    known = {word.rstrip(",") for word in answer.stdout.split() if word.startswith("--")}
    assert set(options(trunk)) <= known


def test_the_8b_preset_has_8_billion_parameters() -> None:
    overrides = ["backend=megatron_8b", "backend.source=/x", "project.name=p", "cooldowns=[]"]
    args: Any = compose(None, overrides).experiment.trainer.args  # type: ignore[attr-defined]
    head = args.hidden_size // args.num_attention_heads
    attention = args.hidden_size * head * 2 * (args.num_attention_heads + args.num_query_groups)
    mlp = 3 * args.hidden_size * args.ffn_hidden_size
    vocabulary = 2 * 128_256 * args.hidden_size
    total = args.num_layers * (attention + mlp) + vocabulary
    assert total == pytest.approx(8.03e9, rel=0.01)


# Refused beforehand, in words


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["backend.args.trian_iters=3"], "backend.args.trian_iters: no such key; did you mean "
         "`train_iters`? (override `backend.args.trian_iters=3`)"),
        (["backend.args.qk_layernrom=true"], "did you mean `qk_layernorm`?"),
        (["backend.args.finetune=true"], "backend.args.finetune: set by autoexp (it starts at"),
        (["backend.args.ckpt_step=100"], "loses its own progress"),
        (["backend.args.lr_decay_style=cosine"], "the training keeps its rate"),
        (["backend.args.lr_warmup_iters=200"], "lr_warmup_iters 200 has to be below train_iters"),
        (["backend.args.save_interval=0"], "greater than 0"),
        (["backend.args.min_lr=1"], "min_lr 1 is above lr"),
        (["backend.args.seq_length=600"], "max_position_embeddings 512 is below seq_length 600"),
        (["backend.args.rampup_batch_size=[8,5,100]"], "steps of 5 do not lead from 8 to 32"),
        (["backend.args.global_batch_size=30"], "batch sizes have to be multiples of 4"),
        (["backend.args.tensor_model_parallel_size=2"], "1 processes are no multiple of the 2"),
        (["backend.args.mock_data=false"], "no data: give `backend.args.data_path`"),
        (["backend.source=/no/where"], "/no/where/pretrain_gpt.py: no such file"),
        (["cooldowns.0.decay.min_lr=1e-5"], "min_lr 1e-05 is not the training's own 0: Megatron"),
        (["backend.args.save_retain_interval=200"], "save_retain_interval 200 deletes its "
         "checkpoint"),
        (["backend.args.exit_duration_in_mins=1.5"], "valid integer"),
        (["backend.args.ckpt_format=zip"], "Input should be 'torch_dist' or 'torch'"),
        (["backend.args.wandb_api_key=abc"], "looks like a secret"),
    ],
)  # fmt: skip
def test_what_megatron_would_refuse_with_fewer_words(overrides: list[str], expected: str) -> None:
    assert expected in refusal(*overrides)


# The stand-in


def seeded(tmp_path: Path, *overrides: str) -> tuple[Plan, Path]:
    """A trunk that has run to its end, and a branch's directory with its start."""
    plan = planned(*overrides, root=tmp_path)
    ended = run(*plan.trunk.command)
    assert ended.returncode == 0, ended.stderr
    trunk, branch = plan.trunk, plan.cooldowns[0]
    found = {x.iteration: x for x in trunk.trainer.checkpoints(Path(trunk.save_dir)).complete}
    assert sorted(found) == [100, 200]
    branch.trainer.seed(found[100], Path(branch.save_dir))
    return plan, Path(branch.save_dir)


@pytest.mark.parametrize("kind", ["torch_dist", "torch", "ramp"])
def test_a_branch_goes_on_from_its_seeded_start_and_its_rate_ends_at_min_lr(
    tmp_path: Path, kind: str
) -> None:
    changes = {
        "torch_dist": ["backend.args.min_lr=1e-5"],
        "torch": ["backend.args.min_lr=1e-5", "backend.args.ckpt_format=torch"],
        "ramp": ["backend.args.min_lr=1e-5", "backend.args.rampup_batch_size=[8,8,800]"],
    }[kind]
    plan, _ = seeded(tmp_path, *changes)
    ended = run(*plan.cooldowns[0].command)
    assert ended.returncode == 0, ended.stderr
    trainer = plan.trunk.trainer
    rates = [trainer.progress(line.encode()) for line in ended.stdout.splitlines()]
    found = [(x.iteration, x.target, x.learning_rate) for x in rates if x is not None]
    assert found[0][:2] == (110, 140)
    assert found[-1] == (140, 140, 1e-5)
    assert 1e-5 < (found[0][2] or 0) < 1e-3


def test_a_branch_killed_in_a_save_goes_on_from_its_own_progress_when_it_is_run_again(
    tmp_path: Path,
) -> None:
    plan, branch_dir = seeded(tmp_path)
    branch = plan.cooldowns[0]
    shorter = tuple("10" if word == "100" else word for word in branch.command)
    killed = run(*shorter, STAND_IN_DIE_IN_SAVE="120")
    assert killed.returncode == -signal.SIGKILL
    complete = [x.iteration for x in branch.trainer.checkpoints(branch_dir).complete]
    assert complete == [100, 110]
    again = run(*shorter)
    assert again.returncode == 0
    assert "successfully loaded checkpoint" in again.stdout
    assert "at iteration 110" in again.stdout
    assert [x.iteration for x in branch.trainer.checkpoints(branch_dir).complete][-1] == 140


def test_the_stand_in_refuses_what_megatron_refuses(tmp_path: Path) -> None:
    plan, branch_dir = seeded(tmp_path)
    trunk, branch = list(plan.trunk.command), list(plan.cooldowns[0].command)

    def changed(command: list[str], **values: str | None) -> subprocess.CompletedProcess[str]:
        words = list(command)
        for name, value in values.items():
            flag = f"--{name.replace('_', '-')}".replace("opt-param", "opt_param")
            if value is None:
                words.remove(flag)
            elif flag in words:
                words[words.index(flag) + 1] = value
            else:
                words += [flag, value] if value else [flag]
        return run(*words)

    longer = changed(trunk, override_opt_param_scheduler=None, train_iters="300",
                     lr_decay_iters="300")  # fmt: skip
    assert longer.returncode == 1
    assert "total number of iterations do not match" in longer.stderr
    other_min = changed(branch, min_lr="1e-5")
    assert other_min.returncode == 1
    assert "Could not find parameter group with key" in other_min.stderr
    assert "AssertionError" in changed(branch, lr_warmup_iters="140").stderr
    no_decay = [word for word in branch if word not in ("--lr-wsd-decay-iters", "40")]
    assert "AssertionError" in run(*no_decay).stderr
    assert changed(trunk, no_such_argument="1").returncode == 2
    (branch_dir / "latest_checkpointed_iteration.txt").unlink()
    assert run(*branch).returncode == 1
    forgetful = changed(branch, exit_on_missing_checkpoint=None)
    assert forgetful.returncode == 0
    assert "will start from random" in forgetful.stdout


def test_told_to_end_it_saves_and_exits_0_and_the_iteration_is_not_the_target(
    tmp_path: Path,
) -> None:
    plan = planned(root=tmp_path)
    environment = {**os.environ, "STAND_IN_SLEEP_MS": "100"}
    with subprocess.Popen(plan.trunk.command, stdout=subprocess.PIPE, env=environment) as trainer:
        assert trainer.stdout is not None
        while b"iteration       10/" not in (line := trainer.stdout.readline()):
            assert line
        trainer.send_signal(signal.SIGTERM)
        said = trainer.stdout.read()
    assert trainer.returncode == 0
    assert b"[exiting program after receiving SIGTERM.]" in said
    (found,) = plan.trunk.trainer.checkpoints(Path(plan.trunk.save_dir)).complete
    assert isinstance(found, FoundCheckpoint)
    assert 10 <= found.iteration < 200


def test_the_last_rank_prints_the_iteration_line_and_a_nan_vanishes_from_it(
    tmp_path: Path,
) -> None:
    plan = planned(root=tmp_path)
    command = plan.trunk.command
    first = run(*command, RANK="0", WORLD_SIZE="2")
    assert "saving checkpoint" in first.stdout
    assert not [x for x in first.stdout.splitlines() if plan.trunk.trainer.progress(x.encode())]
    nan = run(*command, "--train-iters", "210", STAND_IN_NAN_AT="1")
    progress = [plan.trunk.trainer.progress(x.encode()) for x in nan.stdout.splitlines()]
    assert [x.loss for x in progress if x is not None] == [None]


# `autoexp backend check`


def checkout(tmp_path: Path, arguments: str, config: str = "") -> Path:
    """A checkout of Megatron's two habits: plain arguments, and fields of a dataclass."""
    training = tmp_path / "megatron" / "training"
    training.mkdir(parents=True)
    (training / "arguments.py").write_text(arguments)
    (training / "config.py").write_text(config)
    return tmp_path


def test_the_check_reads_the_stand_in_and_it_fits() -> None:
    found = compare(STAND_IN)
    assert found.fits
    assert found.read > 90


def test_the_check_tells_what_is_missing_changed_and_unknown(tmp_path: Path) -> None:
    source = checkout(
        tmp_path,
        "def add(group, factory):\n"
        "    group.add_argument('--train-iters', type=int)\n"
        "    group.add_argument('--bf16', type=str)\n"
        "    group.add_argument('--lr-wsd-decay-style', choices=['linear', 'cosine'])\n"
        "    group.add_argument('--save-every-hour', action='store_true')\n"
        "    factory = ArgumentGroupFactory(CheckpointConfig, exclude=['internal'])\n",
        "from dataclasses import dataclass, field\n"
        "from typing import Literal\n"
        "@dataclass\n"
        "class Base:\n"
        "    save_interval: int | None = None\n"
        "@dataclass(kw_only=True)\n"
        "class CheckpointConfig(Base):\n"
        "    async_save: bool = False\n"
        "    sharp: bool = True\n"
        "    internal: int = 3\n"
        "    steps: int | None = field(init=False, default=None)\n"
        "    ckpt_format: Literal['torch_dist', 'zarr'] = 'torch_dist'\n"
        "    override_opt_param_scheduler: bool = field(default=False, metadata={'argparse_meta': "
        "{'arg_names': ['--override-opt_param-scheduler']}})\n",
    )
    found = compare(source)
    assert not found.fits
    assert set(found.changed) == {
        "ckpt_format: does not take torch; it takes torch_dist, zarr",
        "bf16: takes a value there",
        "lr_wsd_decay_style: does not take minus_sqrt; it takes cosine, linear",
    }
    assert found.unknown == ("disable_sharp", "no_sharp", "save_every_hour")
    assert {"lr", "save", "lr_decay_style"} <= set(found.missing)
    assert not {"async_save", "save_interval", "train_iters"} & set(found.missing)
    assert "override_opt_param_scheduler" not in found.missing


def test_the_checks_source_has_to_be_megatrons(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no Megatron-LM"):
        compare(tmp_path)


def test_an_argument_that_only_the_checkout_knows_passes_through(tmp_path: Path) -> None:
    source = checkout(
        tmp_path,
        "group.add_argument('--train-iters', type=int)\n"
        "group.add_argument('--brand-new', type=int)\n",
    )
    experiment = composed(f"backend.source={source}", "backend.args.brand_new=3").experiment
    assert options(experiment.trainer.trunk_command(Path("/o")))["--brand-new"] == "3"
    with pytest.raises(BadInput, match="did you mean `brand_new`"):
        composed("backend.args.brand_new=3", "backend.args.brand_nwe=3", f"backend.source={source}")


# Names of releases


def test_the_names_are_as_the_command_writes_them_and_say_of_which_releases() -> None:
    written = release.TARGET.read_text()
    assert written == release.written(release_names.RELEASES, release_names.NAMES)
    assert all(name.startswith("core_v") for name in release_names.RELEASES)
    assert {"train_iters", "use_custom_fsdp", "no_bias_gelu_fusion"} <= release_names.NAMES
    assert not known_arguments.PASSED_THROUGH & known_arguments.OURS.keys()


def test_the_names_of_releases_are_read_from_their_tags(tmp_path: Path) -> None:
    git = ("git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@example.org")
    arguments = tmp_path / "megatron" / "training" / "arguments.py"
    arguments.parent.mkdir(parents=True)
    (tmp_path / "pretrain_gpt.py").touch()
    subprocess.run([*git, "init", "-q"], check=True)
    for tag, name in (("core_v1", "old"), ("core_v2", "new"), ("core_v3", "newest")):
        arguments.write_text("".join(f"g.add_argument('--{n}')\n" for n in ("train-iters", name)))
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "-qm", tag], check=True)
        subprocess.run([*git, "tag", tag], check=True)
    target = tmp_path / "release_names.py"
    release.main(tmp_path, ["core_v1", "core_v2"], target)
    assert target.read_text() == release.written(
        ["core_v1", "core_v2"], ["new", "old", "train_iters"]
    )


@pytest.mark.skipif("AUTOEXP_TEST_MEGATRON" not in os.environ, reason="no clone of Megatron-LM")
def test_the_names_are_those_of_the_releases_in_a_clone_of_megatron(tmp_path: Path) -> None:
    target = tmp_path / "release_names.py"
    release.main(Path(os.environ["AUTOEXP_TEST_MEGATRON"]), release_names.RELEASES, target)
    assert target.read_text() == release.TARGET.read_text()


# What changes with the release


def of_release(tmp_path: Path, *names: str) -> str:
    """A checkout that declares the stand-in's arguments and these, and is read, not run."""
    declared = tmp_path / "megatron" / "training" / "arguments.py"
    declared.parent.mkdir(parents=True)
    own = (STAND_IN / "pretrain_gpt.py").read_text()
    (tmp_path / "pretrain_gpt.py").write_text(own)
    declared.write_text("".join(f"group.add_argument('--{name}')\n" for name in names))
    return f"backend.source={tmp_path}"


RAMP = ("backend.args.rampup_batch_size=[8,8,800]", "backend.args.global_batch_size=32")
STEPS = "backend.args.step_batch_size_schedule='0:8 409600:16 1M:32'"


def test_a_ramp_that_the_checkout_ignores_is_refused_with_what_replaces_it(tmp_path: Path) -> None:
    newer = of_release(tmp_path, "step-batch-size-schedule")
    told = refusal(*RAMP, newer)
    assert "ignores it, as all since core_v0.18" in told
    assert "give `step_batch_size_schedule`" in told
    assert compare(tmp_path).meanings[0].startswith("rampup_batch_size: ignored")


def test_a_ramp_of_a_checkout_that_nobody_can_read_has_to_be_said_to_be_taken() -> None:
    image = ("container=apptainer", "container.image=x.sif", "backend.source=/opt/megatron")
    assert "backend.takes_rampup: true" in refusal(*RAMP, *image)
    assert planned(*RAMP, *image, "backend.takes_rampup=true").cooldowns


def test_steps_of_batch_sizes_are_counted_as_megatron_counts_them(tmp_path: Path) -> None:
    newer = of_release(tmp_path, "step-batch-size-schedule")
    plan = planned(newer, STEPS, "backend.args.global_batch_size=32")
    consumed = 0
    for _ in range(140):  # tokens are samples of 512
        consumed += 8 if consumed < 800 else 16 if consumed < 1953 else 32
    branch = options(plan.cooldowns[0].command)
    assert branch["--train-samples"] == str(consumed)
    assert branch["--step-batch-size-schedule"] == "0:8 409600:16 1M:32"
    assert "--global-batch-size" not in branch
    assert not any(name.endswith("-iters") and "eval" not in name for name in branch)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("0:8 1M:16", "ends with 16: set global_batch_size to it"),
        ("5K:8 1M:32", "the first pair is for 0 tokens"),
        ("0:8 1:16 2:32", "each one for more"),
        ("0:8 soon:32", "pairs of tokens and batch size"),
        ("32", "pairs of tokens and batch size"),
    ],
)
def test_steps_that_megatron_refuses_are_refused_in_words(text: str, told: str) -> None:
    wanted = f"backend.args.step_batch_size_schedule='{text}'"
    assert told in refusal(wanted, "backend.args.global_batch_size=32")


def test_steps_are_refused_by_a_checkout_without_them() -> None:
    told = refusal(STEPS, "backend.args.global_batch_size=32")
    assert "step_batch_size_schedule: this checkout is older than core_v0.18" in told


def test_the_interval_of_evaluations_is_always_given_as_megatron_divides_by_it() -> None:
    assert options(planned().trunk.command)["--eval-interval"] == "1000"


def test_the_variables_follow_the_arguments(tmp_path: Path) -> None:
    connections = "CUDA_DEVICE_MAX_CONNECTIONS"
    trunk = planned().trunk
    assert trunk.environment[connections] == "1"
    assert trunk.environment["RANK"] == trunk.environment["LOCAL_RANK"] == "0"
    newer = of_release(tmp_path, "use-megatron-fsdp")
    sharded = planned(newer, "backend.args.use_megatron_fsdp=true")
    assert connections not in sharded.trunk.environment


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("weight_decay_incr_style=cosine", "the weight decay would jump at the branch point"),
        ("lr_warmup_fraction=0.1", "it moves with the length, which a branch changes"),
        ("overlap_param_gather=true", "needs `use_distributed_optimizer: true`"),
    ],
)
def test_what_megatron_accepts_and_a_branch_breaks_is_refused(
    tmp_path: Path, override: str, told: str
) -> None:
    newer = of_release(tmp_path, "weight-decay-incr-style", "lr-warmup-fraction")
    assert told in refusal(newer, f"backend.args.{override}")


def test_fields_that_the_checkout_excludes_are_no_arguments(tmp_path: Path) -> None:
    of_release(tmp_path)
    (tmp_path / "megatron" / "core").mkdir()
    (tmp_path / "megatron" / "core" / "config.py").write_text(
        "@dataclass\nclass Config:\n    kept: int = 1\n    internal: int = 2\n"
    )
    (tmp_path / "megatron" / "training" / "more.py").write_text(
        "def add(parser):\n"
        "    exclude = [\n        'internal',\n    ]\n"
        "    ArgumentGroupFactory(Config, exclude=exclude).build_group(parser, 'c')\n"
        "    parser.add_argument('--wandb', action=argparse.BooleanOptionalAction)\n"
    )
    (tmp_path / "megatron" / "core" / "tool.py").write_text(
        "parser.add_argument('--of-a-tool')\nif __name__ == '__main__':\n    main()\n"
    )
    found = options_in(tmp_path, "pretrain_gpt.py")
    assert {"kept", "wandb", "no_wandb"} <= found.keys()
    assert not {"internal", "of_a_tool"} & found.keys()
