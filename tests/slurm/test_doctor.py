"""The doctor's job on a real cluster, with processes on two nodes."""

from pathlib import Path

import pytest

from autoexp.config.compose import compose
from autoexp.operations.doctor.job import examine_job
from autoexp.planning.plan import make_plan
from tests.slurm.bench import slurm

pytestmark = pytest.mark.slurm


def test_a_job_of_two_nodes_reports_from_both_and_is_reached_by_the_warning(
    tmp_path: Path,
) -> None:
    own = ["launcher=srun", "nodes=2", "tasks_per_node=2", "cpus_per_task=1", "gpus_per_node=0"]
    words = ["slurm=local_cluster", "slurm.scheduler_tick_s=1", *(f"slurm.{each}" for each in own)]
    experiment = compose("demo", [*words, "slurm.options={mem: 100M}"]).experiment
    trunk = make_plan(experiment, tmp_path / "out").trunk
    said: list[str] = []
    answers = {x.what: x for x in examine_job(experiment, trunk, tmp_path / "s", said.append)}
    assert {x.verdict for x in answers.values()} == {"ok"}, answers
    assert answers["processes"].text == "4 of 4, on 2 nodes, 2 on each"
    assert "for each process" in answers["binding"].text  # how many, the machine decides
    assert answers["warning"].text.startswith("SIGTERM reached all 4")
    job_id = said[0].split()[1]
    assert slurm("squeue", "-h", "-j", job_id, "-t", "PENDING,RUNNING") == ""
    assert list((tmp_path / "s").iterdir()) == []
