"""Plans of jobs that may go on with fewer nodes, or have nodes that stand by."""

from pathlib import Path

import pytest

from autoexp.config.compose import compose
from autoexp.errors import BadInput
from autoexp.planning.plan import Plan, make_plan

ELASTIC = ("slurm.nodes=2:4", "slurm.restarts=3", "slurm.gpus_per_node=8")
MEGATRON = (
    *("backend=megatron", "backend.args.train_iters=1000", "backend.args.save_interval=100"),
    "backend.args.mock_data=true",
)


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "pretrain_gpt.py").touch()
    return f"backend.source={tmp_path}"


def plan(*overrides: str) -> Plan:
    words = ["slurm=base", "project.name=p", *ELASTIC, *overrides]
    return make_plan(compose(None, words).experiment, Path("/out"))


def test_a_batch_has_to_fit_each_number_of_nodes(source: str) -> None:
    sizes = ["backend.args.micro_batch_size=1", "slurm.launcher=torchrun"]
    with pytest.raises(BadInput, match="multiples of 24") as refused:
        plan(*MEGATRON, *sizes, source, "backend.args.global_batch_size=64")
    assert "multiples of 16" not in str(refused.value)
    made = plan(*MEGATRON, *sizes, source, "backend.args.global_batch_size=96")
    assert "--nnodes=2:4" not in made.trunk.command
    assert made.trunk.machine.gpus == 32


def test_a_trainer_whose_batch_follows_the_processes_would_change_its_lengths() -> None:
    own = ("backend=torchtitan", "backend.args.model.hf_assets_path=/assets")
    with pytest.raises(BadInput, match="its lengths would change as nodes fail"):
        plan(*own, "slurm.launcher=torchrun")
    plan(*own, "slurm.launcher=ft_launcher")  # always as many


def test_a_plan_says_what_nodes_cost_that_stand_by(source: str) -> None:
    made = plan(
        *MEGATRON, source, "backend.args.global_batch_size=64", "slurm.launcher=ft_launcher"
    )
    (note,) = (note for note in made.notes if "stand by" in note)
    assert note == (
        "2 of the 4 nodes of a job stand by: they cost as much as those that train (16 of 32 GPUs)"
    )


def test_a_range_of_nodes_in_yaml_is_no_time_of_day(tmp_path: Path) -> None:
    slurm = "{launcher: torchrun, restarts: 1, nodes: 2:40}"
    text = f"defaults: [demo, _self_]\nslurm: {slurm}\n"
    (tmp_path / "mine.yaml").write_text(text)
    machine = compose(str(tmp_path / "mine.yaml"), ["slurm=base"]).experiment.slurm
    assert (machine.nodes, machine.min_nodes) == (40, 2)  # type: ignore[union-attr]
