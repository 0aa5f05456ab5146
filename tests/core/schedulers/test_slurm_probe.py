"""What SLURM would refuse is known before anything is made."""

from pathlib import Path
from typing import Any

import pytest

from autoexp.cli.main import main
from autoexp.jobs.spec import JobSpec
from autoexp.resources.machines import SlurmCluster
from autoexp.schedulers.slurm.probe import refusals
from tests.builders import spec_of
from tests.fakes.slurm import Fakes

# As SLURM 22.05 says it.
NO_PARTITION = (
    "sbatch: error: invalid partition specified: gup\n"
    "allocation failure: Invalid partition name specified"
)
NO_ACCOUNT = (
    "allocation failure: Invalid account or account/partition combination specified\n"
    "allocation failure: Invalid account or account/partition combination specified"
)


def job(name: str = "a", **settings: Any) -> JobSpec:
    machine = SlurmCluster(**{"warn_before_limit_s": 0, **settings})
    return spec_of("true", name=name, machine=machine)


def test_what_slurm_takes_is_asked_once_for_all_jobs_that_are_alike(fakes: Fakes) -> None:
    fakes.says("sinfo", "main* 30:00")
    jobs = [job(f"a{n}", partition="main", time_limit_min=30) for n in range(9)]
    assert refusals([*jobs, job("b", partition="main", time_limit_min=20)]) == []
    calls = fakes.calls("sbatch")
    assert len(calls) == 2 and all(call.startswith("--test-only /") for call in calls)


def test_a_job_on_this_machine_asks_nothing(fakes: Fakes) -> None:
    assert refusals([spec_of("true")]) == []
    assert fakes.calls("sbatch") == fakes.calls("sinfo") == []


def test_the_words_of_sbatch_are_told_with_the_setting_and_a_name_that_exists(
    fakes: Fakes,
) -> None:
    fakes.fails("sbatch", NO_PARTITION)
    fakes.says("sinfo", "gpu", "cpu")
    (reason,) = refusals([job(partition="gup"), job("b", partition="gup")])
    assert reason == (
        "a: SLURM would not take it: invalid partition specified: gup; "
        "Invalid partition name specified (slurm.partition=gup); did you mean `gpu`?"
    )
    fakes.fails("sbatch", NO_ACCOUNT)
    (reason,) = refusals([job(account="me", partition="gpu")])
    assert reason == (
        "a: SLURM would not take it: Invalid account or account/partition combination specified "
        "(slurm.partition=gpu, slurm.account=me)"
    )


def test_more_time_than_the_partition_allows_is_refused_before_sbatch_is_asked(
    fakes: Fakes,
) -> None:
    fakes.says("sinfo", "main* 30:00")
    (reason,) = refusals([job(partition="main", time_limit_min=60)])
    assert "it asks for 60 min, and partition main allows 30 (slurm.time_limit_min)" in reason
    assert fakes.calls("sbatch") == []


@pytest.mark.parametrize(
    "words",
    [
        "sbatch: error: Unable to contact slurm controller (connect failure)",
        "sbatch: error: Batch job submission failed: Requested nodes are busy",
        "sbatch: error: AssocMaxSubmitJobLimit\nallocation failure: Job violates accounting/QOS "
        "policy (job submit limit, user's size and/or time limits)",
    ],
)
def test_an_outage_or_a_full_queue_refuses_nothing(fakes: Fakes, words: str) -> None:
    fakes.fails("sbatch", words)
    assert refusals([job(), job("b", nodes=2, launcher="srun")]) == []
    assert len(fakes.calls("sbatch")) == 1


def test_where_there_is_no_slurm_nothing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert refusals([job(time_limit_min=5)]) == []


@pytest.mark.parametrize("command", ["plan", "run"])
def test_plan_and_run_end_with_2_and_make_nothing(
    fakes: Fakes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    monkeypatch.setenv("AUTOEXP_SESSIONS", str(tmp_path / "sessions"))
    fakes.fails("sbatch", NO_PARTITION)
    assert main([command, "demo", "slurm=local_cluster", "slurm.partition=gup"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("autoexp: demo: SLURM would not take it: invalid partition specified")
    assert said.endswith("nothing was submitted\n") and said.count("Invalid partition name") == 1
    assert not (tmp_path / "sessions").exists()
