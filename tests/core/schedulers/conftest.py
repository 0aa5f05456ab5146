"""SLURM's commands as scripts, for the tests of this folder."""

from pathlib import Path

import pytest

from tests.fakes.slurm import Fakes


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))  # no real one is behind them
    return Fakes(folder)
