"""Presets of described trainers, against what their own projects take."""

import ast
import json
import subprocess
from pathlib import Path

from autoexp.backends.torchtitan.compatibility import compare
from autoexp.config.compose import compose
from autoexp.planning.plan import Plan, make_plan
from tests.trainers.real import clone_at, torch_python

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


def planned(preset: str, source: Path) -> Plan:
    words = [f"backend={preset}", f"backend.source={source}", "project.name=p"]
    cooldown = "cooldowns=[{at: [1000], decay: {iterations: 247, shape: minus_sqrt}}]"
    return make_plan(compose(None, [*words, cooldown]).experiment, Path("/out"))


def test_schedules_and_scaling_parses_a_plan_and_decays_as_long_as_planned(tmp_path: Path) -> None:
    checkout = clone_at("AUTOEXP_TEST_SCHEDULES_AND_SCALING", tmp_path, "src")
    jobs = planned("schedules_and_scaling", checkout).jobs
    answer = subprocess.run(
        [torch_python("torch"), "-c", PARSE, str(checkout)],
        input=json.dumps([list(job.command[2:]) for job in jobs]),
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    assert [json.loads(line) for line in answer.stdout.splitlines()] == [
        [15000, 0, "linear", "/out/p/checkpoints"],
        [1247, 247, "sqrt", "/out/p-cd1000/checkpoints"],
    ]


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
