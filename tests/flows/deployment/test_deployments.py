"""Which deployments `autoexp deploy` makes: the project's own, else those of autoexp."""

import asyncio
from pathlib import Path

import pytest
import yaml
from prefect.server.schemas.schedules import CronSchedule

from autoexp.cli.main import main
from autoexp.errors import BadInput
from autoexp.flows.deployment import deploy
from tests.sources import ROOT

NAMES = ["train", "cooldown", "evaluate", "branch", "resume"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AUTOEXP_CONFIGS", raising=False)
    monkeypatch.delenv("AUTOEXP_SESSIONS", raising=False)
    return tmp_path


def test_a_project_has_deployments_of_its_own_name(project: Path) -> None:
    assert main(["init", "--name", "lab", "--command", "python train.py --lr 1"]) == 0
    file, found = deploy._deployments()
    assert file == project / "prefect.yaml"
    assert [(each.flow, each.name) for each in found] == [
        (f"autoexp-{name}", f"lab-{name}") for name in NAMES
    ]


@pytest.mark.parametrize("content", [None, "deployments: [{name: a, entrypoint: mine.py:f}]"])
def test_elsewhere_those_of_autoexp_are_deployed(project: Path, content: str | None) -> None:
    if content is not None:
        (project / "prefect.yaml").write_text(content)
    file, found = deploy._deployments()
    assert file == deploy._SHIPPED and [each.name for each in found] == NAMES


def test_the_schedule_of_the_shipped_deployments_is_prefects_own_and_off() -> None:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    (scheduled,) = [each for each in deployments if "schedules" in each]
    (written,) = scheduled["schedules"]
    assert (scheduled["name"], written.pop("active")) == ("train", False)
    dates = asyncio.run(CronSchedule.model_validate(written).get_dates(2))
    assert {(date.weekday(), date.hour) for date in dates} == {(0, 6)}


@pytest.mark.parametrize(
    "content", ["{", "[]", "deployments: [{entrypoint: autoexp.flows.train.train, name: a}]"]
)
def test_a_file_of_deployments_that_cannot_be_read_is_named(project: Path, content: str) -> None:
    (project / "prefect.yaml").write_text(content)
    with pytest.raises(BadInput, match=rf"{project}/prefect\.yaml: cannot be read"):
        deploy._deployments()


def test_runs_of_a_deployment_find_configurations_and_sessions_where_it_was_deployed_with(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with deploy._with_places(deploy._SHIPPED) as filled:
        assert filled == deploy._SHIPPED
    monkeypatch.setenv("AUTOEXP_CONFIGS", "mine")
    monkeypatch.setenv("AUTOEXP_SESSIONS", "/scratch/sessions")
    with deploy._with_places(deploy._SHIPPED) as filled:
        entries = yaml.safe_load(filled.read_text())["deployments"]
    for entry in entries:
        variables = entry["work_pool"]["job_variables"]
        assert variables["env"] == {
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "360",
            "AUTOEXP_CONFIGS": str(project / "mine"),
            "AUTOEXP_SESSIONS": "/scratch/sessions",
        }
        assert variables["stream_output"] is False
