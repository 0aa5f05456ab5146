"""What is checked before anything is submitted, with SLURM's commands played."""

import os
import resource
import time
from pathlib import Path
from typing import Any

import pytest

from autoexp.config.compose import compose
from autoexp.operations.doctor import host as doctor
from autoexp.operations.doctor.host import Finding, examine
from autoexp.planning.plan import make_plan
from tests.fakes.slurm import Fakes


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    """A cluster on which all is well."""
    folder = tmp_path / "bin"
    folder.mkdir()
    played = Fakes(folder)
    played.says("sinfo", "main* 1-00:00:00")
    played.tell("sacctmgr", "echo 'mine|normal,debug'")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(doctor, "_LEAST_FREE", 1)
    for name in ("SLURM_ACCOUNT", "SLURM_PARTITION", "SLURM_QOS"):
        monkeypatch.delenv(name, raising=False)
    return played


def found(tmp_path: Path, *overrides: str) -> dict[str, Finding]:
    slurm = () if any("slurm=" in word for word in overrides) else ("slurm=local_cluster",)
    experiment = compose("demo", [*slurm, *overrides]).experiment
    trunk = make_plan(experiment, tmp_path / "out").trunk
    return {x.what: x for x in examine(experiment, trunk, tmp_path / "sessions")}


def test_where_all_is_well_each_line_says_so(fakes: Fakes, tmp_path: Path) -> None:
    answers = found(tmp_path, "slurm.account=mine", "slurm.qos=debug")
    assert {name: x.verdict for name, x in answers.items()} == dict.fromkeys(
        (
            *("python", "sessions", "clock", "proxy", "slurm", "account", "qos"),
            *("partition", "submission"),
        ),
        "ok",
    )
    assert answers["partition"].text == "main, up to 1440 minutes"
    assert any(call.startswith("--test-only") for call in fakes.calls("sbatch"))
    assert list((tmp_path / "sessions").iterdir()) == []


@pytest.mark.parametrize(
    ("override", "what", "text"),
    [
        ("slurm.account=other", "account", "other is none of yours: mine"),
        ("slurm.qos=long", "qos", "long is none of yours: debug, normal"),
        ("slurm.time_limit_min=2000", "partition", "main allows 1440 minutes, and 2000 are asked"),
    ],
)
def test_what_slurm_would_refuse_is_to_be_mended_with_the_key(
    fakes: Fakes, tmp_path: Path, override: str, what: str, text: str
) -> None:
    answer = found(tmp_path, override)[what]
    assert answer.verdict == "to mend"
    assert text in answer.text


def test_a_partition_that_is_not_there_is_named_with_those_that_are(
    fakes: Fakes, tmp_path: Path
) -> None:
    fakes.says("sinfo", "gpu* 1:00:00", "cpu infinite")
    answer = found(tmp_path, "slurm.partition=gpus")["partition"]
    assert answer == Finding("partition", "to mend", "there is no gpus; there are: cpu gpu")


def test_what_sbatch_says_against_the_batch_script_is_passed_on(
    fakes: Fakes, tmp_path: Path
) -> None:
    fakes.fails("sbatch", "sbatch: error: invalid account\nallocation failure: Invalid account")
    answer = found(tmp_path)["submission"]
    assert (answer.verdict, answer.text) == ("to mend", "sbatch refuses it: invalid account")


def test_without_slurm_it_says_so_and_asks_no_further(fakes: Fakes, tmp_path: Path) -> None:
    fakes.fails("sinfo", "no cluster")
    answers = found(tmp_path)
    assert answers["slurm"].verdict == "to mend"
    assert "on a login node" in answers["slurm"].text
    assert "submission" not in answers


def test_accounting_that_does_not_answer_is_not_known(fakes: Fakes, tmp_path: Path) -> None:
    fakes.fails("sacctmgr", "slurmdbd is away")
    assert found(tmp_path)["account"].verdict == "not known"


def test_another_sites_preset_is_pointed_out(fakes: Fakes, tmp_path: Path) -> None:
    assert "is this the site that you mean" in found(tmp_path, "slurm=lumi")["site"].text


def test_an_image_that_is_not_there_is_to_be_mended(fakes: Fakes, tmp_path: Path) -> None:
    image = tmp_path / "x.sif"
    overrides = ("container=apptainer", f"container.image={image}")
    assert found(tmp_path, *overrides)["image"].verdict == "to mend"
    image.touch()
    assert found(tmp_path, *overrides)["image"].verdict == "ok"


def test_a_host_that_kills_processes_a_full_disk_and_another_clock_are_told(
    fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: Any = lambda _: (600, 600)  # noqa: E731
    monkeypatch.setattr(resource, "getrlimit", limits)
    monkeypatch.setattr(doctor, "_LEAST_FREE", 1 << 62)
    now_s = time.time()
    monkeypatch.setattr(time, "time", lambda: now_s - 30)
    answers = found(tmp_path)
    assert "a process may use 10 minutes here" in answers["processor time"].text
    assert answers["sessions"].text.endswith("free: make room")
    assert answers["clock"].text.startswith("the file server's clock is +3")


def test_a_place_for_sessions_that_cannot_be_written_is_told(fakes: Fakes, tmp_path: Path) -> None:
    (tmp_path / "sessions").write_text("a file")
    assert "set AUTOEXP_SESSIONS" in found(tmp_path)["sessions"].text
