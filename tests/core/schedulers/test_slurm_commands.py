"""SLURM's commands when they are killed: what they had done by then is not known."""

import os
from pathlib import Path

import pytest

from autoexp.errors import SchedulerUnavailable, SubmissionUncertain
from autoexp.schedulers.slurm.commands import run
from autoexp.schedulers.slurm.script import _sbatch


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is first on PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def tell(folder: Path, name: str, lines: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{lines}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize("signal", ["INT", "KILL", "TERM"])
def test_an_sbatch_that_is_killed_is_looked_up_and_never_taken_for_a_refusal(
    commands: Path, signal: str
) -> None:
    tell(commands, "sbatch", f"echo submitted >>{commands}/submitted; kill -{signal} $$; sleep 5")
    descriptor = os.open(commands / "lock", os.O_RDWR | os.O_CREAT)
    try:
        with pytest.raises(SubmissionUncertain, match="killed by signal"):
            _sbatch(commands / "batch.sh", descriptor, 20)
    finally:
        os.close(descriptor)
    assert (commands / "submitted").exists()


def test_a_query_that_is_killed_says_nothing_of_any_job(commands: Path) -> None:
    tell(commands, "squeue", "kill -KILL $$")
    with pytest.raises(SchedulerUnavailable, match="killed by signal 9"):
        run(["squeue"], 20)


def test_a_command_is_out_of_reach_of_the_terminals_ctrl_c(commands: Path) -> None:
    tell(commands, "sbatch", "cut -d' ' -f5 /proc/$$/stat")
    assert int(run(["sbatch"], 20)) != os.getpgid(0)
