"""Which torchtitan a checkout is, by its source."""

from pathlib import Path

import pytest

from autoexp.backends.torchtitan.compatibility import compare
from autoexp.config.compose import compose
from autoexp.errors import BadInput
from autoexp.planning.plan import Plan, make_plan
from autoexp.schedulers.launch import with_launcher

OWN = ("backend=torchtitan", "project.name=p", "cooldowns=[]")


def old(tmp_path: Path) -> Path:
    """A checkout of 0.2, with a field more and many fewer."""
    file = tmp_path / "torchtitan" / "config" / "job_config.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "@dataclass\nclass Training:\n    steps: int = 1\n    new_field: int = 2\n"
        "@dataclass\nclass JobConfig:\n    training: Training = field(default_factory=Training)\n"
    )
    return tmp_path


def new(tmp_path: Path) -> Path:
    file = tmp_path / "torchtitan" / "config" / "manager.py"
    file.parent.mkdir(parents=True)
    file.write_text('"""--module selects the module, --config its function."""\n')
    return tmp_path


def test_a_checkout_of_02_is_compared_by_the_fields_of_its_sections(tmp_path: Path) -> None:
    found = compare(old(tmp_path))
    assert (found.speaks, found.fits) == ("0.2", False)
    assert found.unknown == ("training.new_field",)
    assert "training.seq_len" in found.missing
    assert "training.steps" not in found.missing


def test_a_checkout_since_february_2026_is_known_by_what_it_requires(tmp_path: Path) -> None:
    found = compare(new(tmp_path))
    assert (found.speaks, found.fits) == ("0.3", True)


def options(plan: Plan, place: int) -> dict[str, str]:
    """The options of a job's command, with their values."""
    words = plan.jobs[place].command
    assert words[1:3] == ("-m", "torchtitan.train")
    found: dict[str, str] = {}
    for word in words[3:]:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            found[name] = value
        else:
            found[name] = word
    return found


def planned(*overrides: str) -> Plan:
    cooldown = "cooldowns=[{at: [800], decay: {iterations: 200, shape: minus_sqrt}}]"
    return make_plan(compose(None, [*OWN[:2], cooldown, *overrides]).experiment, Path("/out"))


def test_one_description_is_said_in_the_words_of_the_checkout(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    checkouts = (old(tmp_path / "old"), new(tmp_path / "new"))
    plans = [planned(f"backend.source={checkout}") for checkout in checkouts]
    before, now = (options(plan, 0) for plan in plans)
    assert before["training.local_batch_size"] == "8"
    assert before["job.dump_folder"] == now["dump_folder"] == "/out/p/checkpoints"
    assert (now["module"], now["config"]) == ("llama3", "llama3_debugmodel")
    assert now["training.num_tokens_per_microbatch_per_dp_rank"] == str(8 * 2048)
    assert now["training.max_context_length"] == "2048"
    assert now["hf_assets_path"] == before["model.hf_assets_path"]
    assert not any(name.startswith(("model.", "job.", "optimizer.")) for name in now)
    same = ("training.steps", "lr_scheduler.decay_ratio", "checkpoint.no_last_save_model_only")
    for name in same:
        assert now[name] == before[name]
    cooled = options(plans[1], 1)
    assert cooled["lr_scheduler.decay_type"] == "sqrt"
    assert round(float(cooled["lr_scheduler.decay_ratio"]) * int(cooled["training.steps"])) == 200
    assert [plan.jobs[1].target_iteration for plan in plans] == [1000, 1000]


def test_what_03_would_not_do_is_refused_with_the_reason() -> None:
    own = ["backend.speaks='0.3'", "backend.args.model.hf_assets_path=/assets"]
    planned(*own)
    for override, reason in (
        ("backend.args.training.dataset=c4", "args.training.dataset: torchtitan 0.3 has no option"),
        ("backend.args.optimizer.beta1=0.8", "args.optimizer.beta1"),
        ("backend.args.job.config_file=/mine.toml", "args.job.config_file"),
    ):
        with pytest.raises(BadInput, match=reason):
            planned(*own, override)
    pipeline = ["backend.args.parallelism.pipeline_parallel_degree=2", "slurm.gpus_per_node=2"]
    pipeline += ["slurm.launcher=torchrun"]
    with pytest.raises(BadInput, match="global_batch_size"):
        planned(*own, *pipeline)
    whole = planned(*own, *pipeline, "backend.args.training.global_batch_size=64")
    assert options(whole, 0)["training.num_tokens_per_train_step"] == str(64 * 2048)


def test_a_function_of_ones_own_is_named() -> None:
    mine = ["backend.speaks='0.3'", "backend.args.model.hf_assets_path=/assets"]
    found = options(planned(*mine, "backend.config=mine.models/big"), 0)
    assert (found["module"], found["config"]) == ("mine.models", "big")
    found = options(planned(*mine, "backend.args.model.flavor=8B"), 0)
    assert found["config"] == "llama3_8b"


def test_what_is_no_torchtitan_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no torchtitan"):
        compare(tmp_path)


def test_it_runs_in_its_checkout_whose_paths_its_preset_names(tmp_path: Path) -> None:
    experiment = compose(None, [*OWN, f"backend.source={old(tmp_path)}"]).experiment
    trunk = make_plan(experiment, Path("/out")).trunk
    assert with_launcher(trunk.machine, trunk, "key")[:2] == ("env", f"--chdir={tmp_path}")
    with pytest.raises(BadInput, match="tokenizer is a path of torchtitan's checkout: give"):
        make_plan(compose(None, [*OWN]).experiment, Path("/out"))


def test_the_preset_of_schedules_and_scaling_plans_a_cooldown(tmp_path: Path) -> None:
    words = ["backend=schedules_and_scaling", f"backend.source={tmp_path}", "project.name=p"]
    cooldown = "cooldowns=[{at: [1000], decay: {iterations: 250}}]"
    plan = make_plan(compose(None, [*words, cooldown]).experiment, Path("/out"))
    (branch,) = plan.cooldowns
    (ratio,) = (word for word in branch.command if "fract-decay=" in word)
    assert round(float(ratio.partition("=")[2]) * 1250) == 250
