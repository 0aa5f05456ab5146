"""A session whose server, from its middle on, answers what no Prefect server should, or is gone."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.flows.between import Between, standing_between
from tests.flows.commands import autoexp, start_monitor, wait_until_running
from tests.flows.own_server import Own
from tests.flows.prefect_home import prefect_home
from tests.flows.sessions import Make, hold_back
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.prefect

ANSWERS = {
    "a page of a proxy": (200, b"<html>maintenance</html>"),
    "a database that has lost the run": (404, b'{"detail": "Flow run not found"}'),
    "a login": (401, b'{"exception_message": "Unauthorized"}'),
    "500 to every call": (500, b'{"exception_message": "Internal Server Error"}'),
}
SMALL = "cooldowns=[{at: [100], decay: {iterations: 50}}]"
INCOMPLETE = (
    "The Prefect server does not answer, or refuses; its records of this run are incomplete"
)
OLDER = "Your Prefect server is running an older version of Prefect than your client"


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Iterator[Between]:
    with standing_between() as found:
        monkeypatch.setenv("PREFECT_API_URL", found.url)
        yield found


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Own]:
    found = Own(prefect_home(tmp_path), monkeypatch)
    yield found
    found.process.kill()
    found.process.wait()


def told_of(path: Path, monitor: "subprocess.Popen[str]", *, warnings: set[int]) -> str:
    """What a monitor has printed by its end, which is that of its jobs, with one word about it."""
    output, _ = monitor.communicate(timeout=PATIENCE_S)
    assert monitor.returncode == 0, output
    jobs = Session.load(path).jobs.values()
    assert {(job.verdict, len(job.attempts)) for job in jobs} == {(Verdict.FINISHED, 1)}
    assert "finished (reached iteration" in output
    assert "Traceback" not in output and "| ERROR" not in output, output
    assert output.count("| WARNING") in warnings, output
    return output


@pytest.mark.parametrize("answer", ANSWERS)
def test_jobs_end_right_and_the_exit_code_is_theirs_whatever_the_server_answers(
    answer: str, make_session: Make, between: Between
) -> None:
    path = make_session(SMALL)
    gate = hold_back(path)
    monitor = start_monitor(path)
    wait_until_running(path)
    between.own = ANSWERS[answer]
    gate.touch()

    output = told_of(path, monitor, warnings={1})

    assert between.given > 0
    assert "the session goes on, and tells Prefect once it answers" in output
    assert output.count(INCOMPLETE) == 1


def test_a_server_that_takes_five_seconds_for_each_answer_holds_up_no_job(
    make_session: Make, between: Between
) -> None:
    path = make_session(SMALL)
    gate = hold_back(path)
    monitor = start_monitor(path)
    wait_until_running(path)
    between.late_s = 5.0
    gate.touch()

    output = told_of(path, monitor, warnings={0, 1})

    assert between.given > 0
    assert output.count(INCOMPLETE) <= 1


def test_a_server_of_another_version_is_told_once_and_works_or_nothing_is_submitted(
    make_session: Make, between: Between
) -> None:
    path = make_session(SMALL)
    between.version = b'"4.0.0"'
    refused = autoexp("resume", path.name, root=path.parent)
    assert refused.returncode == 1
    assert "Traceback" not in refused.stdout + refused.stderr
    (line,) = [said for said in refused.stderr.splitlines() if said.startswith("autoexp:")]
    assert "is of version 4.0.0" in line and f"`autoexp resume {path.name}`" in line
    assert not any(job.attempts for job in Session.load(path).jobs.values())

    between.version = b'"3.0.0"'
    output = told_of(path, start_monitor(path), warnings={1})
    assert output.count(OLDER) == 1 and INCOMPLETE not in output


def test_a_server_that_is_killed_under_a_session_is_told_once(make_session: Make, own: Own) -> None:
    path = make_session(SMALL)
    gate = hold_back(path)
    monitor = start_monitor(path)
    wait_until_running(path)
    own.kill()
    gate.touch()

    output = told_of(path, monitor, warnings={0, 1})

    assert output.count(INCOMPLETE) == 1


def test_a_database_that_is_emptied_under_a_session_is_told_once(
    make_session: Make, own: Own
) -> None:
    path = make_session(SMALL)
    gate = hold_back(path)
    monitor = start_monitor(path)
    wait_until_running(path)
    own.wipe()
    gate.touch()

    output = told_of(path, monitor, warnings={1})

    assert output.count(INCOMPLETE) == 1
