"""The whole drill on the cluster of three nodes, as a site would run it."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jsonschema
import pytest

from autoexp.operations.drill import setting
from autoexp.schemas.outputs import FOLDER
from autoexp.session.find import below, live_holder
from autoexp.session.session import Session
from tests.flows.commands import autoexp
from tests.patience import PATIENCE_S, until
from tests.slurm.bench import slurm

pytestmark = [pytest.mark.slurm, pytest.mark.prefect, pytest.mark.slow]


def queued(session: str) -> list[str]:
    """The names of the jobs of a session that SLURM still has."""
    states = "PENDING,RUNNING,COMPLETING"
    names = slurm("squeue", "-h", "-t", states, "-o", "%j").splitlines()
    return [name for name in names if name.startswith(session)]


def test_all_exercises_of_a_drill_hold_on_the_cluster(tmp_path: Path) -> None:
    root = tmp_path / "sessions"
    answer = autoexp("drill", "slurm=local_cluster", "--json", root=root, timeout=1800)
    assert answer.returncode == 0, answer.stderr + answer.stdout
    outcome = json.loads(answer.stdout)
    jsonschema.validate(outcome, json.loads((FOLDER / "drill.json").read_text()))
    assert [line["exercise"] for line in outcome["lines"]] == list(setting.EXERCISES)
    assert {line["result"] for line in outcome["lines"]} == {"held"}
    assert outcome["site"] == "local_cluster"

    # By SLURM's own word, which the drill has not read in this way: one job for each attempt.
    session = Session.load(Path(outcome["path"]))
    keys = {attempt.key for job in session.jobs.values() for attempt in job.attempts}
    names = slurm("sacct", "-X", "-n", "-P", "-o", "JobName", "-S", "now-1hour").splitlines()
    assert Counter(name for name in names if name in keys) == dict.fromkeys(keys, 1)
    assert queued(session.id) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=str)
def test_a_drill_that_is_interrupted_or_killed_leaves_no_job_and_no_monitor(
    tmp_path: Path, number: int
) -> None:
    root = tmp_path / "sessions"
    drill = subprocess.Popen(
        [sys.executable, "-m", "autoexp", "drill", "slurm=local_cluster"],
        env={**os.environ, "AUTOEXP_SESSIONS": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    def runs() -> bool:
        assert drill.poll() is None, "the drill has ended by itself"
        found = [Session.load(each.path) for each in below(root)]
        return any(job.state == "RUNNING" for each in found for job in each.jobs.values())

    try:
        until(runs, "a job of the drill", seconds=3 * PATIENCE_S)  # Prefect's database comes first
    finally:
        drill.send_signal(number)
        output, _ = drill.communicate(timeout=PATIENCE_S)
    assert drill.returncode == (-9 if number == signal.SIGKILL else 130), output
    (found,) = below(root)
    if number == signal.SIGKILL:
        until(lambda: Session.load(found.path).is_over, "the end of its session")
    session = Session.load(found.path)
    assert session.is_over and queued(session.id) == []
    assert session.jobs["drill"].was_cancelled and live_holder(session) is None
