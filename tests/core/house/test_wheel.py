"""The wheel holds all of autoexp under one import name."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.sources import ROOT

LINKED = ("flows", "tasks", "blocks", "configs")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    return zipfile.ZipFile(file)


def test_a_wheel_holds_every_module_and_configuration_under_one_name(
    wheel: zipfile.ZipFile,
) -> None:
    # os.walk goes into links, as hatchling does; rglob does not.
    there = {
        str((Path(folder) / name).relative_to(ROOT))
        for folder, _, names in os.walk(ROOT / "autoexp", followlinks=True)
        for name in names
        if Path(name).suffix in {".py", ".yaml", ".json"}
    }
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == there
    for name in LINKED:
        assert any(path.startswith(f"autoexp/{name}/") for path in held), name


def test_links_lead_to_the_folders_beside_them() -> None:
    for name in (*LINKED, "prefect.yaml"):
        link = ROOT / "autoexp" / name
        assert link.is_symlink() and link.resolve() == ROOT / name
        assert not link.readlink().is_absolute()


def test_deployments_name_modules_that_a_wheel_holds(wheel: zipfile.ZipFile) -> None:
    content = yaml.safe_load(wheel.read("autoexp/prefect.yaml"))
    for deployment in content["deployments"]:
        module, _, function = deployment["entrypoint"].rpartition(".")
        source = wheel.read(f"{module.replace('.', '/')}.py").decode()
        assert f"async def {function}(" in source
