"""Which files of a user's folder a configuration uses: its own and its groups', and no others."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from autoexp.config.compose import compose
from autoexp.config.search_path import ConfigGroups, locate, merged


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def shown(config: Path, *groups: str) -> set[str]:
    paths, name = locate(str(config))
    with merged(paths, name, groups) as directory:
        return {str(file.relative_to(directory)) for file in directory.rglob("*.yaml")}


FILES = {
    "exp.yaml": "defaults: [base, {slurm: own}, {model/size: big}, _self_]\nproject: {name: x}\n",
    "base.yaml": "defaults: [{backend: demo}, _self_]\ncooldowns: []\n",
    "other.yaml": "a: 1\n",
    "slurm/own.yaml": "defaults: [/also/this, local]\n",
    "also/this.yml": "# @package _global_\nbudget: {startup_s: 1}\n",
    "model/size/big.yaml": "# @package backend.args\nlr: 0.5\n",
    "model/other/x.yaml": "a: 1\n",
    "lib/deep/down/x.yaml": "a: 1\n",
}


def test_only_what_a_configuration_refers_to_is_shown(tmp_path: Path) -> None:
    write(tmp_path, FILES)
    found = shown(tmp_path / "exp.yaml", "container")
    assert {"exp.yaml", "base.yaml", "slurm/own.yaml", "slurm/lumi.yaml", "also/this.yaml"} <= found
    assert {"model/size/big.yaml", "backend/demo.yaml", "container/none.yaml"} <= found
    own = {"other.yaml", "model/other/x.yaml", "lib/deep/down/x.yaml", "demo.yaml"}
    assert not own & found


def test_files_and_groups_of_a_users_folder_compose(tmp_path: Path) -> None:
    write(tmp_path, FILES)
    config = str(tmp_path / "exp.yaml")
    found = compose(config)
    assert found.experiment.budget.startup_s == 1 and "lr: 0.5" in found.resolved
    write(tmp_path, {"model/size/small.yaml": "# @package backend.args\nlr: 0.25\n"})
    assert "lr: 0.25" in compose(config, ["model/size=small"]).resolved
    assert compose(config, ["slurm=local", "backend.args.lr=0.1"]).experiment.budget.startup_s == 0


def test_a_folder_is_looked_into_no_deeper_than_its_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"exp.yaml": "defaults: [demo, _self_]\n"})
    write(tmp_path, {f"lib/{n}/{n}.yaml": "a: 1\n" for n in range(30)})
    looked: list[str] = []
    scandir = os.scandir

    def counting(path: object = ".") -> object:
        looked.append(str(path))
        return scandir(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", counting)
    compose(str(tmp_path / "exp.yaml"), ["project.name=x"])
    assert not [path for path in looked if path.startswith(f"{tmp_path}/lib")]


@pytest.mark.parametrize(
    ("name", "is_group"),
    [
        *(("slurm", True), ("model/size", True), ("model", False), ("lib", False)),
        *(("", False), (".", False), ("..", False), ("/etc", False), ("slurm.nodes", False)),
    ],
)
def test_a_group_is_a_directory_of_configurations(
    tmp_path: Path, name: str, is_group: bool
) -> None:
    write(tmp_path, FILES)
    groups = ConfigGroups([tmp_path])
    assert (name in groups) is is_group


@pytest.mark.parametrize("raw", [b"\xff\xfe", b"a: [\n", b"defaults: 3\n", b"- 1\n"])
def test_a_broken_file_beside_is_no_matter(tmp_path: Path, raw: bytes) -> None:
    write(tmp_path, {"exp.yaml": "defaults: [demo, _self_]\n", "slurm/x.yaml": ""})
    (tmp_path / "slurm" / "broken.yaml").write_bytes(raw)
    overrides: Sequence[str] = ["project.name=x"]
    assert compose(str(tmp_path / "exp.yaml"), overrides).experiment.project.name == "x"
