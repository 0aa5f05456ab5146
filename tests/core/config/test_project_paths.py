"""Relative paths in a file lead to the same place wherever autoexp runs."""

from pathlib import Path

import pytest

from autoexp.config.compose import compose
from autoexp.storage.places import SHIPPED

OWN = """\
defaults: [{project: demo}, {slurm: local}, {backend: mine}, _self_]
project: {name: own, output_root: out}
"""
BACKEND = """\
kind: command
source: src
python: env/bin/python
command: ['{python}', '{source}/train.py']
saves: {name: 'step-{iteration}', must_exist: ['*']}
log_line: 'step (?P<iteration>[0-9]+)'
args: {train_iters: 10, save_interval: 5}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "project" / "configs" / "backend").mkdir(parents=True)
    (tmp_path / "project" / "configs" / "own.yaml").write_text(OWN)
    (tmp_path / "project" / "configs" / "backend" / "mine.yaml").write_text(BACKEND)
    return tmp_path / "project"


def paths(config: str, *overrides: str) -> tuple[str, str, str]:
    experiment = compose(config, overrides).experiment
    backend = experiment.backend
    assert backend.kind == "command"
    command = backend.trunk_command(Path("/save"))
    return command[0], command[1], experiment.project.output_root or ""


@pytest.mark.parametrize("where", ["project", "elsewhere", "project/configs"])
def test_a_path_of_a_file_is_below_its_project_in_any_directory(
    project: Path, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / where)
    expected = (f"{project}/env/bin/python", f"{project}/src/train.py", f"{project}/out")
    assert paths(str(project / "configs" / "own.yaml")) == expected
    monkeypatch.setenv("AUTOEXP_CONFIGS", str(project / "configs"))
    assert paths("own") == expected


def test_a_path_of_the_command_line_is_below_the_working_directory(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = paths(str(project / "configs" / "own.yaml"), "backend.source=here", "backend.python=py")
    assert found[:2] == ("py", f"{tmp_path}/here/train.py")


def test_paths_that_are_whole_stay_as_they_are(project: Path) -> None:
    file = project / "configs" / "backend" / "mine.yaml"
    file.write_text(BACKEND.replace("source: src", "source: ~/src"))
    assert paths(str(project / "configs" / "own.yaml"))[1] == f"{Path.home()}/src/train.py"


def test_every_sweep_point_has_the_path_of_its_file(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    grid = "backend.args.train_iters=10,20"
    composed = compose(str(project / "configs" / "own.yaml"), [grid])
    roots = {point.experiment.project.output_root for point in composed.points}
    assert roots == {f"{project}/out"}


def test_a_file_outside_of_any_configs_is_its_own_project(tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    file.write_text("defaults: [demo, _self_]\nproject: {output_root: out}\n")
    composed = compose(str(file))
    assert composed.experiment.project.output_root == f"{tmp_path}/out"
    assert SHIPPED.is_dir()
