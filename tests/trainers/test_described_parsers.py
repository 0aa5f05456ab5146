"""Command lines of presets, against what their own projects take and the rates that they make."""

import ast
from pathlib import Path

import pytest

from autoexp.backends.torchtitan.compatibility import compare
from autoexp.config.compose import compose
from autoexp.logs.event_files import RateReader
from autoexp.planning.plan import Plan, make_plan
from autoexp.schedulers.launch import payload_spec
from tests.trainers.real import (
    PARSERS,
    clone_at,
    peak_of,
    read_by,
    refuse_other_rates,
    torch_python,
)

OPTIONS = "tests/unit_tests/test_no_new_cli_options.py"
PARSE = """
import argparse, json, sys
sys.path.insert(0, sys.argv[1] + "/src")
import config
for line in json.load(sys.stdin):
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--config_format", default="base", choices=config.registered_formats())
    known, rest = parser.parse_known_args(line)
    parsed = config.parse_args_with_format(known.config_format, parser, rest, known)
    print(json.dumps([parsed.iterations, int(parsed.wsd_fract_decay * parsed.iterations),
                      parsed.decay_type, parsed.results_base_folder]))
"""


def planned(
    preset: str,
    source: Path,
    *overrides: str,
    shape: str = "minus_sqrt",
    root: Path = Path("/out"),
) -> Plan:
    words = [f"backend={preset}", f"backend.source={source}", "project.name=p", *overrides]
    cooldown = f"cooldowns=[{{at: [1000], decay: {{iterations: 247, shape: {shape}}}}}]"
    return make_plan(compose(None, [*words, cooldown]).experiment, root)


def test_schedules_and_scaling_parses_a_plan_and_decays_as_long_as_planned(tmp_path: Path) -> None:
    checkout = clone_at("AUTOEXP_TEST_SCHEDULES_AND_SCALING", tmp_path, "src")
    jobs = planned("schedules_and_scaling", checkout).jobs
    command = [torch_python("torch"), "-c", PARSE, str(checkout)]
    assert read_by(command, [job.command[2:] for job in jobs]) == [
        [15000, 0, "linear", "/out/p/checkpoints"],
        [1247, 247, "sqrt", "/out/p-cd1000/checkpoints"],
    ]


LENGTHS = (
    "backend.args.train_iters=2000",
    "backend.args.save_interval=500",
    "backend.args.lr_warmup_iters=100",
)


def test_nanogpt_takes_a_plan_and_its_rates_are_the_planned_ones(tmp_path: Path) -> None:
    paths = ("train.py", "model.py", "configurator.py", "config")
    checkout = clone_at("AUTOEXP_TEST_NANOGPT", tmp_path, *paths)
    jobs = planned("nanogpt", checkout, *LENGTHS, shape="cosine").jobs
    again = payload_spec(jobs[1].machine, jobs[1], "key").resumed
    lines = [jobs[0].command, jobs[1].command, again]
    command = [torch_python("torch", "numpy"), str(PARSERS / "nanogpt_parser.py"), str(checkout)]
    words = [line[line.index("train.py") + 1 :] for line in lines]
    trunk, branch, resumed = read_by(command, words)
    assert (trunk[0]["out_dir"], trunk[0]["max_iters"]) == ("/out/p/checkpoints", 2000)
    # It saves where it evaluates.
    assert (trunk[0]["eval_interval"], trunk[0]["always_save_checkpoint"]) == (500, True)
    assert [branch[0]["init_from"], resumed[0]["init_from"]] == ["scratch", "resume"]
    assert resumed[0]["out_dir"] == "/out/p-cd1000/checkpoints"
    assert resumed[1] == branch[1]
    refuse_other_rates(trunk[1], branch[1], jobs[1], warmup=100)


def test_olmo_core_builds_a_plan_and_its_rates_are_the_planned_ones(tmp_path: Path) -> None:
    checkout = clone_at("AUTOEXP_TEST_OLMO_CORE", tmp_path, "src")
    jobs = planned("olmo_core", checkout, *LENGTHS, shape="cosine").jobs
    lines = [[str(checkout / job.command[1]), *job.command[2:]] for job in jobs]
    python = torch_python("torch", "dataclass_extensions", "bettermap", "requests")
    command = [python, str(PARSERS / "olmo_core_parser.py")]
    trunk, branch = read_by(command, lines, checkout / "src")
    assert trunk[0] == {
        "save_folder": "/out/p/checkpoints",
        "max_duration": [2000, "steps"],
        "save_interval": 500,
        "ephemeral_save_interval": None,
        "max_checkpoints": None,
        "save_async": False,
    }
    assert branch[0]["save_folder"] == "/out/p-cd1000/checkpoints"
    refuse_other_rates(trunk[1], branch[1], jobs[1], warmup=100, ahead=1)


@pytest.mark.parametrize("tag", [None, "v0.2.2"], ids=["0.3", "0.2"])
def test_torchtitans_manager_takes_a_plan_and_its_rates_are_the_planned_ones(
    tmp_path: Path, tag: str | None
) -> None:
    checkout = clone_at("AUTOEXP_TEST_TORCHTITAN", tmp_path, "torchtitan", tag=tag)
    jobs = planned("torchtitan", checkout).jobs
    needed = ("tyro",) if tag else ("tyro", "spmd_types", "grain", "torch_checkpointing")
    command = [torch_python("torch", *needed), str(PARSERS / "torchtitan_parser.py")]
    lines = [job.command[3:] for job in jobs]
    (trunk, steady), (branch, falling) = read_by(command, lines, checkout)
    for config, name, steps in ((trunk, "p", 1000), (branch, "p-cd1000", 1247)):
        place = config if tag is None else config["job"]
        assert place["dump_folder"] == f"/out/{name}/checkpoints"
        assert config["training"]["steps"] == steps
        saves = config["checkpoint"]
        assert (saves["enable"], saves["folder"], saves["interval"]) == (True, "checkpoint", 100)
        assert (saves["keep_latest_k"], saves["initial_load_model_only"]) == (0, False)
        assert saves["last_save_model_only"] is False
    trunk_rates, rates = (
        [peak_of(jobs[1]) * factor for factor in each] for each in (steady, falling)
    )
    refuse_other_rates(trunk_rates, rates, jobs[1], warmup=20)


@pytest.mark.parametrize("tag", [None, "v0.2.2"], ids=["0.3", "0.2"])
def test_the_rates_in_torchtitans_event_files_are_the_planned_ones(
    tmp_path: Path, tag: str | None
) -> None:
    """Its own logger, in the folder and under the names where they are looked for."""
    checkout = clone_at("AUTOEXP_TEST_TORCHTITAN", tmp_path, "torchtitan", tag=tag)
    branch = planned("torchtitan", checkout, root=tmp_path / "out").jobs[1]
    assert branch.branch is not None
    needed = ("tyro",) if tag else ("tyro", "spmd_types", "grain", "torch_checkpointing")
    program = str(PARSERS / "torchtitan_metrics.py")
    command = [torch_python("torch", "tensorboard", *needed), program, str(peak_of(branch))]
    assert read_by(command, [branch.command[3:]], checkout) == [[branch.target_iteration]]
    files = branch.trainer.rate_files(Path(branch.save_dir))
    assert files is not None
    rates = RateReader().read(files)
    assert [step for step, _ in rates] == [1, *range(10, 1248, 10)]
    for step, rate in rates[101:]:
        assert rate == pytest.approx(branch.trainer.planned_rate(branch.branch, step - 1), rel=0.01)


def test_torchtitan_lists_every_option_of_a_plan(tmp_path: Path) -> None:
    checkout = clone_at("AUTOEXP_TEST_TORCHTITAN", tmp_path, "torchtitan", OPTIONS)
    tree = ast.parse((checkout / OPTIONS).read_text())
    listed = {
        element.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Set)
        for element in node.elts
        if isinstance(element, ast.Constant)
    }
    for job in planned("torchtitan", checkout).jobs:
        words = [word.partition("=")[0][2:] for word in job.command if word.startswith("--")]
        own = {word.replace(".no_", ".") for word in words} - {"module", "config"}
        assert own - listed == set()


def test_the_checkout_is_known_by_its_source(tmp_path: Path) -> None:
    checkout = clone_at("AUTOEXP_TEST_TORCHTITAN", tmp_path, "torchtitan")
    assert compare(checkout).speaks == "0.3"
