"""Megatron-LM's own parser, of the clone in AUTOEXP_TEST_MEGATRON: names, command lines."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from autoexp.backends.megatron.source_reader import names_in
from autoexp.config.compose import compose
from autoexp.planning.plan import make_plan
from tests.trainers.real import PARSERS, clone_at, torch_python

SCRIPT = "pretrain_gpt.py"
PARSER = PARSERS / "megatron_parser.py"
# Arguments that it has only beside packages that are not here: modelopt, kitchen; and of a server.
ELSEWHERE = ("export_", "finetune_", "kitchen_", "input_")
OF_MODELOPT = {"enable_gpt_oss", "freeze_base_for_mtp", "modelopt_enabled", "qad_train_target"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("megatron")
    return clone_at("AUTOEXP_TEST_MEGATRON", folder, "megatron", SCRIPT)


def parsed(checkout: Path, *lines: tuple[str, ...]) -> dict[str, Any]:
    python = torch_python("torch", "typing_extensions")
    answer = subprocess.run(
        [python, str(PARSER), str(checkout)],
        input=json.dumps([list(line[2:]) for line in lines]),
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return found


def test_the_names_that_are_read_are_those_that_the_parser_takes(checkout: Path) -> None:
    real = set(parsed(checkout)["names"]) - {"help"}
    read = names_in(checkout, SCRIPT)
    assert real - read == set()
    invented = {name for name in read - real if not name.startswith(ELSEWHERE)}
    assert invented - OF_MODELOPT == set()


@pytest.mark.parametrize("preset", ["megatron", "megatron_8b"])
def test_the_parser_takes_every_word_of_a_plan(checkout: Path, preset: str) -> None:
    overrides = [
        *(f"backend={preset}", f"backend.source={checkout}", "project.name=p"),
        *("backend.args.train_iters=5000", "backend.args.save_interval=1000"),
        *("slurm.gpus_per_node=8", "slurm.launcher=torchrun"),
        "cooldowns=[{at: [4000], decay: {iterations: 100}}]",
    ]
    data = ["backend.args.data_path=[/data]"] if preset == "megatron_8b" else []
    plan = make_plan(compose(None, [*overrides, *data]).experiment, Path("/out"))
    assert parsed(checkout, *(job.command for job in plan.jobs))["unknown"] == [[], []]
