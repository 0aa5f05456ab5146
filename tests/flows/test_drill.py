"""A drill on this machine: a real monitor with a Prefect server of its own, both of them killed."""

import json
from pathlib import Path

import jsonschema
import pytest

from autoexp.operations.drill import setting
from autoexp.schemas.outputs import FOLDER
from autoexp.session.session import Session
from tests.flows.commands import autoexp

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
