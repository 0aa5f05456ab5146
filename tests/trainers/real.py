"""What real trainers need: a Python that has them, and clones of their repositories."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PYTHON = os.environ.get("AUTOEXP_TEST_TORCH_PYTHON", sys.executable)


def torch_python(*modules: str) -> str:
    """The Python of the trainers; skips the test, with the reason, where a module is missing."""
    code = "; ".join(f"import {module}" for module in modules)
    if subprocess.run([PYTHON, "-c", code], capture_output=True).returncode != 0:
        pytest.skip(f"{PYTHON} has no {' and '.join(modules)}: set AUTOEXP_TEST_TORCH_PYTHON")
    return PYTHON


def clone_at(name: str, folder: Path, *paths: str) -> Path:
    """Files of the newest commit in the clone that a variable names, or of a tag `CLONE@TAG`."""
    given = os.environ.get(name)
    if given is None:
        pytest.skip(f"no clone of it: set {name}")
    clone, _, commit = given.partition("@")
    git = ["git", "-C", clone, "archive", commit or "HEAD", *paths]
    archive = subprocess.run(git, check=True, stdout=subprocess.PIPE).stdout
    subprocess.run(["tar", "x", "-C", str(folder)], input=archive, check=True)
    return folder
