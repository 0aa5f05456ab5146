"""Runtimes that srun starts, run by a stand-in that checks its words and plays the image."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.containers.boxes import box
from tests.fakes.plugins import srun_with

SEEN = (
    "import json, os; print(json.dumps({**os.environ, 'RANK_OF': os.environ.get('RANK'), "
    "'CWD': os.getcwd()}))"
)
ON_A_CLUSTER = ("slurm=local_cluster", "slurm.launcher=srun", f"container.python={sys.executable}")


def seen(plugin: str, folder: Path, *overrides: str, **environment: str) -> list[dict[str, Any]]:
    """What each process of a training under the stand-in sees."""
    srun_with(plugin, folder / "bin")
    own = (*ON_A_CLUSTER, f"container={plugin}", *overrides)
    made = box(folder / "session", SEEN, *own)
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    of_slurm = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "PATH": path}
    assert made.start(**of_slurm, **environment).wait(60) == 0, made.log
    found = [json.loads(line) for line in made.log.splitlines()]
    assert {process["CWD"] for process in found} == {made.spec.output_dir}
    assert {process["AUTOEXP_KEY"] for process in found} == {made.ref.key}
    return found


def test_pyxis_takes_our_words_and_what_is_configured_wins_over_the_image(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    image = "container.image='nvcr.io#nvidia/pytorch:25.08-py3'"
    binds = f"container.binds=['{tmp_path}/data:/data:ro']"
    given = ("+slurm.environment.OMP_NUM_THREADS=7", "container.pass=[HF_TOKEN]")
    found = seen("pyxis", tmp_path, image, binds, *given, HF_TOKEN="of-my-own")
    assert [process["RANK_OF"] for process in found] == ["0", "1"]
    for process in found:
        assert (process["OMP_NUM_THREADS"], process["NCCL_SOCKET_IFNAME"]) == ("7", "eth0")
        assert process["HF_TOKEN"] == "of-my-own"


def test_the_container_engine_takes_our_words_where_its_file_mounts_what_is_written(
    tmp_path: Path,
) -> None:
    (tmp_path / "ngc.toml").write_text(f'image = "x.sqsh"\nmounts = ["{tmp_path}:{tmp_path}"]\n')
    found = seen("edf", tmp_path, f"container.image={tmp_path}/ngc.toml")
    assert [process["RANK_OF"] for process in found] == ["0", "1"]


@pytest.mark.parametrize("plugin", ["pyxis", "edf"])
def test_the_hosts_python_packages_stay_outside_unless_they_are_asked_for(
    plugin: str, tmp_path: Path
) -> None:
    (tmp_path / "x.toml").write_text(f'image = "x.sqsh"\nmounts = ["{tmp_path}:{tmp_path}"]\n')
    image = "/img/x.sqsh" if plugin == "pyxis" else f"{tmp_path}/x.toml"
    own = f"container.image={image}"
    for process in seen(plugin, tmp_path / "without", own, PYTHONPATH="/of/the/host"):
        assert "PYTHONPATH" not in process and process["PYTHONNOUSERSITE"] == "1"
    asked = "container.pass=[PYTHONPATH,PYTHONNOUSERSITE]"
    for process in seen(plugin, tmp_path / "asked", own, asked, PYTHONPATH="/of/the/host"):
        assert process["PYTHONPATH"] == "/of/the/host" and "PYTHONNOUSERSITE" not in process
