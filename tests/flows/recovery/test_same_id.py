"""Sessions of one id under several roots, on this machine."""

from pathlib import Path

import pytest

from autoexp.config.compose import compose
from autoexp.session.session import Session
from tests.builders import create
from tests.flows.commands import autoexp
from tests.flows.recovery.twins import BRANCH, run_both, twins
from tests.flows.sessions import SMALL

pytestmark = pytest.mark.prefect


def test_two_sessions_of_one_id_on_one_machine_end_undisturbed_and_share_no_output_root(
    tmp_path: Path,
) -> None:
    first, second = twins(tmp_path, "twin")
    try:
        run_both(first, second)
    finally:
        for path in (first, second):
            autoexp("cancel", path.name, root=path.parent)


def test_a_session_whose_outputs_another_has_by_now_is_not_resumed(tmp_path: Path) -> None:
    composed = compose("demo", [*SMALL, BRANCH, f"project.output_root={tmp_path}/out"])
    first = create(composed, tmp_path / "root1", session_id="twin")
    first.rename(tmp_path / "away")
    second = create(composed, tmp_path / "root2", session_id="twin")
    (tmp_path / "away").rename(first)

    answer = autoexp("resume", "twin", root=first.parent)

    assert answer.returncode == 2, answer.stdout + answer.stderr
    (line,) = answer.stderr.splitlines()
    assert f"twin: {tmp_path}/out/twin is where session {second} writes by now" in line
    assert "Traceback" not in answer.stdout
    assert not any(job.attempts for job in Session.load(first).jobs.values())
