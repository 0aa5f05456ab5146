"""Blocks: what Prefect's own suite asks of them, and experiments that name them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect.blocks.core import Block
from prefect.testing.standard_test_suites import BlockStandardTestSuite

from autoexp.blocks import ApptainerContainer, LocalMachine, SlurmCluster
from autoexp.errors import BadInput
from autoexp.flows.engine.compose import compose
from autoexp.resources import machines
from autoexp.resources.containers import Apptainer
from autoexp.schedulers.slurm.scheduler import SlurmScheduler
from tests.flows.commands import autoexp

pytestmark = pytest.mark.prefect


@pytest.mark.parametrize("block", [SlurmCluster, LocalMachine, ApptainerContainer])
class TestBlocksKeepPrefectsStandards(BlockStandardTestSuite):
    @pytest.fixture
    def block(self) -> type[Block]:
        raise NotImplementedError  # given by the parameter

    def test_has_a_valid_image(self, block: type[Block]) -> None:
        """Prefect's own test fetches the picture; here nothing is asked of the internet."""
        logo = str(block._logo_url)
        assert logo.startswith("https://")
        assert logo.endswith(".png")


def refusal(*overrides: str) -> str:
    with pytest.raises(BadInput) as refused:
        compose("demo", overrides)
    return str(refused.value)


def test_an_experiment_runs_where_the_block_that_it_names_says() -> None:
    settings = machines.SlurmCluster(partition="gpu", account="project_1", gpus_per_node=8)
    SlurmCluster(settings=settings).save("here", overwrite=True)

    composed = compose("demo", ["slurm=block", "slurm.block=here", "slurm.qos=debug"])

    assert composed.experiment.slurm == settings.model_copy(update={"qos": "debug"})
    # What is written into the session needs no Prefect to be run again.
    assert "partition: gpu" in composed.resolved
    assert "block: here" not in composed.resolved


def test_an_experiments_file_may_name_a_block_without_any_group(tmp_path: Path) -> None:
    LocalMachine(settings=machines.LocalMachine(max_jobs=3)).save("desk", overwrite=True)
    file = tmp_path / "mine.yaml"
    file.write_text("defaults: [{project: demo}, {backend: demo}, _self_]\nslurm: {block: desk}\n")

    assert compose(str(file)).experiment.slurm == machines.LocalMachine(max_jobs=3)


def test_a_block_that_is_not_there_is_bad_input_with_where_to_look() -> None:
    told = refusal("slurm=block", "slurm.block=nowhere")
    assert "slurm.block" in told
    assert "'nowhere'" in told
    assert "autoexp blocks create" in told


def test_a_block_of_another_kind_than_the_chosen_group_is_refused() -> None:
    SlurmCluster().save("cluster", overwrite=True)
    told = refusal("slurm=local", "slurm.block=cluster")
    assert "kind slurm" in told
    assert "slurm=block slurm.block=cluster" in told


def test_a_preset_becomes_a_block_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ACCOUNT", "project_42")
    first = autoexp("blocks", "create", "lumi", "slurm.nodes=4", root=tmp_path)
    again = autoexp("blocks", "create", "lumi", root=tmp_path)
    renewed = autoexp("blocks", "create", "lumi", "--overwrite", root=tmp_path)

    assert first.returncode == 0, first.stderr
    assert "slurm=block slurm.block=lumi" in first.stdout
    assert again.returncode == 2
    assert "--overwrite" in again.stderr
    assert renewed.returncode == 0, renewed.stderr
    block: Any = SlurmCluster.load("lumi")
    assert block.settings.account == "project_42"
    assert block.settings.partition == "standard-g"
    assert block.settings.nodes == 1
    assert isinstance(block.scheduler(), SlurmScheduler)


def test_all_blocks_are_registered_with_one_command() -> None:
    command = [sys.executable, "-m", "prefect", "block", "register", "-m", "autoexp.blocks"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert said.returncode == 0, said.stderr
    assert "autoexp SLURM cluster" in said.stdout
    assert "autoexp local machine" in said.stdout
    assert "autoexp Apptainer container" in said.stdout


def test_an_experiment_trains_in_the_container_that_it_names() -> None:
    settings = Apptainer(image="/images/megatron.sif", binds=("/scratch",), gpus="rocm")
    ApptainerContainer(settings=settings).save("megatron", overwrite=True)

    composed = compose("demo", ["container=block", "container.block=megatron"])

    assert composed.experiment.container == settings


def test_prefect_knows_the_blocks_by_their_entry_point_and_imports_no_scheduler_for_them() -> None:
    program = (
        "import sys; from prefect.plugins import load_prefect_collections as load; "
        "from prefect.blocks.core import Block; "
        "from prefect.utilities.dispatch import get_registry_for_type as known; "
        "assert load()['autoexp'].__name__ == 'autoexp.blocks'; "
        "print(*(name for name in known(Block) if name.startswith('autoexp-'))); "
        "assert not [name for name in sys.modules if name.startswith('autoexp.schedulers')]"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert sorted(answer.stdout.split()) == [
        "autoexp-apptainer-container",
        "autoexp-local-machine",
        "autoexp-slurm-cluster",
    ]
