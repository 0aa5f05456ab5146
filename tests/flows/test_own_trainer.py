"""A trainer that autoexp has never heard of, described in YAML."""

from pathlib import Path

import pytest

from autoexp.reports.curves import gains
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.flows.commands import autoexp

pytestmark = pytest.mark.prefect


def test_a_trainer_of_ones_own_needs_a_description_and_no_python(tmp_path: Path) -> None:
    root = tmp_path / "sessions"
    answer = autoexp("run", "examples/own-trainer/experiment.yaml", "--session", "own", root=root)
    assert answer.returncode == 0, answer.stdout + answer.stderr

    session = Session.load(root / "own")
    assert {job.verdict for job in session.jobs.values()} == {Verdict.FINISHED}
    assert {name: job.iteration for name, job in session.jobs.items()} == {
        "own-trainer": 400,
        "own-trainer-cd200": 260,
        "own-trainer-cd300": 360,
    }
    log = Path(session.jobs["own-trainer-cd200"].attempts[0].log).read_text()
    assert log.startswith("resumed at 200\n")
    assert session.jobs["own-trainer-cd200"].learning_rate == pytest.approx(0.0)
    assert all(gain.gain > 0 for gain in gains(session))
