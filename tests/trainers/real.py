"""What real trainers need: a Python that has them, and clones of their repositories."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from autoexp.jobs.spec import JobSpec

PARSERS = Path(__file__).with_name("parsers")
PYTHON = os.environ.get("AUTOEXP_TEST_TORCH_PYTHON", sys.executable)


def torch_python(*modules: str) -> str:
    """The Python of the trainers; skips the test, with the reason, where a module is missing."""
    code = "; ".join(f"import {module}" for module in modules)
    if subprocess.run([PYTHON, "-c", code], capture_output=True).returncode != 0:
        pytest.skip(f"{PYTHON} has no {' and '.join(modules)}: set AUTOEXP_TEST_TORCH_PYTHON")
    return PYTHON


def clone_at(name: str, folder: Path, *paths: str, tag: str | None = None) -> Path:
    """Files of the newest commit in the clone that a variable names, or of a tag `CLONE@TAG`.

    With `tag` of that one in any case; skips the test where the clone has none.
    """
    given = os.environ.get(name)
    if given is None:
        pytest.skip(f"no clone of it: set {name}")
    clone, _, commit = given.partition("@")
    git = ["git", "-C", clone]
    known = [*git, "rev-parse", "--verify", "--quiet", f"{tag}^{{commit}}"]
    if tag is not None and subprocess.run(known, capture_output=True).returncode != 0:
        pytest.skip(f"the clone in {name} has no {tag}")
    wanted = [*git, "archive", tag or commit or "HEAD", *paths]
    archive = subprocess.run(wanted, check=True, stdout=subprocess.PIPE).stdout
    subprocess.run(["tar", "x", "-C", str(folder)], input=archive, check=True)
    return folder


def read_by(command: Sequence[str], given: Sequence[Any], path: Path | None = None) -> list[Any]:
    """What a program of a trainer's own says of command lines or texts, a list for each.

    `path` is where its packages are found besides.
    """
    own = {} if path is None else {"PYTHONPATH": str(path)}
    answer = subprocess.run(
        command,
        input=json.dumps(given),
        capture_output=True,
        text=True,
        env={**os.environ, **own, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert answer.returncode == 0, answer.stderr
    return [json.loads(line) for line in answer.stdout.splitlines() if line.startswith("[")]


def peak_of(branch: JobSpec) -> float:
    """The rate that a branch begins with."""
    assert branch.branch is not None
    peak = branch.trainer.planned_rate(branch.branch, branch.branch.iteration)
    assert peak is not None
    return peak


def refuse_other_rates(
    trunk: Sequence[float],
    cooled: Sequence[float],
    branch: JobSpec,
    *,
    warmup: int,
    ahead: float = 0,
) -> None:
    """Assert that a trainer's own rates are the planned ones, by step, the first being 0.

    A trainer that is `ahead` of the plan by a part of a step, or one, may be so by no more.
    """
    start, peak = branch.branch, peak_of(branch)
    assert start is not None
    assert list(trunk[warmup:]) == pytest.approx([peak] * (len(trunk) - warmup), rel=1e-4)
    assert len(cooled) == branch.target_iteration
    for step in range(start.iteration, branch.target_iteration):
        planned = [branch.trainer.planned_rate(start, step + late) for late in (0, ahead)]
        highest, lowest = (rate for rate in planned if rate is not None)
        assert 0.99 * lowest <= cooled[step] <= 1.01 * highest, (step, lowest, highest)
