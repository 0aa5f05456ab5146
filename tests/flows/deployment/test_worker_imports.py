"""Nothing of ours stands in the way of another distribution where a worker runs flows."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

from tests.sources import ROOT

CODE = """
import importlib, sys
from prefect.flows import load_flow_from_entrypoint

stand_ins, names, entrypoints = sys.argv[1], sys.argv[2].split(), sys.argv[3:]
for entrypoint in entrypoints:
    load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
sys.path.append(stand_ins)  # where site-packages are: behind all that Prefect has put in front
for name in names:
    print(importlib.import_module(name).__file__)
"""


def imported(folder: Path, names: list[str], entrypoints: list[str]) -> set[Path]:
    """Where modules come from in a process that is set up as a worker's is, once flows are loaded.

    A worker runs it in the deployment's directory, which it puts first on the path.
    """
    for name in names:
        (folder / f"{name}.py").touch()
    answer = subprocess.run(
        [sys.executable, "-c", CODE, str(folder), " ".join(names), *entrypoints],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    return {Path(line).resolve() for line in answer.stdout.splitlines()}


def test_no_module_of_the_flows_shadows_a_distribution(tmp_path: Path) -> None:
    content = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    entrypoints = [deployment["entrypoint"] for deployment in content["deployments"]]
    ours = {path.stem for path in (ROOT / "flows").rglob("[!_]*") if path.suffix in {"", ".py"}}
    found = imported(tmp_path, sorted({"requests", *ours}), entrypoints)
    assert "evaluate" in ours
    # `requests` may be installed.
    assert {path.parent for path in found if "requests" not in path.parts} == {tmp_path.resolve()}

    # As a file an entry point puts its folder in front of everybody's.
    (shadowed,) = imported(tmp_path, ["evaluate"], ["flows/evaluate.py:evaluate"])
    assert shadowed == ROOT / "flows" / "evaluate.py"
