"""The doctor on a real cluster: what it asks of SLURM, and a job with processes on two nodes."""

from pathlib import Path

import pytest

from autoexp.config.compose import compose
from autoexp.operations.doctor.host import examine
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
    assert "Gbit/s over one TCP connection" in answers["bandwidth"].text
    assert answers["warning"].text.startswith("SIGTERM reached all 4")
    job_id = said[0].split()[1]
    assert slurm("squeue", "-h", "-j", job_id, "-t", "PENDING,RUNNING") == ""
    assert list((tmp_path / "s").iterdir()) == []


@pytest.mark.parametrize(
    ("partition", "verdict", "text"),
    [
        ("main", "ok", "main, up to "),
        ("short", "to mend", "short allows 1 minutes, and 10 are asked for"),
        ("mian", "to mend", "there is no mian; there are: "),
    ],
)
def test_slurm_answers_what_is_asked_about_a_partition(
    tmp_path: Path, partition: str, verdict: str, text: str
) -> None:
    words = ["slurm=local_cluster", f"slurm.partition={partition}", "slurm.time_limit_min=10"]
    experiment = compose("demo", words).experiment
    trunk = make_plan(experiment, tmp_path / "out").trunk
    answers = {x.what: x for x in examine(experiment, trunk, tmp_path / "s")}
    assert (answers["slurm"].verdict, answers["partition"].verdict) == ("ok", verdict)
    assert answers["partition"].text.startswith(text)
