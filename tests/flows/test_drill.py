"""A drill on this machine: a real monitor with a Prefect server of its own, both of them killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from autoexp.operations.drill import setting
from autoexp.schemas.outputs import FOLDER
from autoexp.session.find import below
from autoexp.session.session import Session
from tests.flows.commands import autoexp
from tests.patience import PATIENCE_S, until
from tests.processes import is_alive, marked, stands_still

pytestmark = [pytest.mark.prefect, pytest.mark.slow]

NOT_HERE = {setting.SICK_NODE, setting.JOB}


def test_what_can_be_tried_on_this_machine_holds_and_the_rest_is_called_not_tried(
    tmp_path: Path,
) -> None:
    words = ("drill", "slurm=local", "slurm.gpus_per_node=1", "--json")
    answer = autoexp(*words, root=tmp_path / "sessions", timeout=900)
    assert answer.returncode == 0, answer.stderr + answer.stdout
    outcome = json.loads(answer.stdout)
    jsonschema.validate(outcome, json.loads((FOLDER / "drill.json").read_text()))
    results = {line["exercise"]: line["result"] for line in outcome["lines"]}
    assert results == {
        exercise: "not tried" if exercise in NOT_HERE else "held" for exercise in setting.EXERCISES
    }
    session = Session.load(Path(outcome["path"]))
    assert session.is_over and session.id == outcome["session"]
    # Every exercise left its trace: the training's step was killed, and the budget was full.
    assert [attempt.state for attempt in session.jobs["drill"].attempts] == ["FAILED", "COMPLETED"]
    assert session.journal.has("budget/budget.stop_above")
    assert not list(setting.holds_below(session.path).iterdir())


def test_a_drill_that_is_killed_leaves_no_process_no_job_and_no_prefect_directory(
    tmp_path: Path,
) -> None:
    root, temporary = tmp_path / "sessions", tmp_path / "tmp"
    temporary.mkdir()
    own = {"AUTOEXP_SESSIONS": str(root), "TMPDIR": str(temporary)}
    drill = subprocess.Popen(
        [sys.executable, "-m", "autoexp", "drill", "slurm=local"],
        env={**os.environ, **own, "XDG_STATE_HOME": str(tmp_path / "state")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    mark = b"AUTOEXP_SESSIONS=" + os.fsencode(root)

    def stopped() -> list[int]:
        """The server's keeper, which stands still while the server is away."""
        assert drill.poll() is None, "the drill has ended by itself"
        return [pid for pid in marked(mark) if "keeper" in name_of(pid) and stands_still(pid)]

    try:
        until(stopped, "the outage of the server", seconds=3 * PATIENCE_S)
        (found,) = below(root)
        running = [a for j in Session.load(found.path).jobs.values() for a in j.open_attempts]
        assert running, "something has to run on"
    finally:
        drill.kill()
        drill.wait()
    until(
        lambda: not [pid for pid in marked(mark) if is_alive(pid)], "the end of all its processes"
    )
    session = Session.load(found.path)
    assert session.is_over and session.jobs["drill"].was_cancelled
    assert not list(setting.holds_below(session.path).iterdir())
    assert not list(temporary.glob("autoexp-drill-*"))


def name_of(pid: int) -> str:
    """What `ps` shows; empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""
