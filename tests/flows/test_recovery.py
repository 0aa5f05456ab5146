"""Nothing lost, nothing doubled: real kills of a real monitor, with real jobs."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from autoexp.jobs import Verdict
from autoexp.session import Session
from tests.flows.conftest import Make, edit_job

pytestmark = pytest.mark.prefect

KILLS = int(os.environ.get("AUTOEXP_TEST_KILLS", "12"))
FAILS = "--fail-at-iteration"
ONE_SHOT = (
    "import asyncio, sys; from flows.train import train; "
    "state = asyncio.run(train(session=sys.argv[1], return_state=True)); "
    "sys.exit(0 if state.is_completed() else 1)"
)


def monitor(path: Path, **variables: str) -> "subprocess.Popen[bytes]":
    """The session flow in a process of its own, as Prefect would run it again."""
    with (path / "monitor.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", ONE_SHOT, path.name],
            env={**os.environ, "AUTOEXP_SESSIONS": str(path.parent), **variables},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def count_starts(path: Path) -> None:
    """Have every job note each start of its trainer in a file."""
    for name in Session.load(path).jobs:
        note = f'echo {name} >> {path}/starts; exec "$@"'
        edit_job(path, name, lambda command, note=note: ["/bin/sh", "-c", note, "sh", *command])


def starts(path: Path) -> Counter[str]:
    return Counter((path / "starts").read_text().split())


def assert_each_job_ran_once(path: Path) -> Session:
    session = Session.load(path)
    assert {job.verdict for job in session.jobs.values()} == {Verdict.FINISHED}
    assert [len(job.attempts) for job in session.jobs.values()] == [1] * len(session.jobs)
    assert starts(path) == dict.fromkeys(session.jobs, 1)
    keys = [entry.event.key for entry in session.journal.entries]
    assert len(keys) == len(set(keys))
    assert {action.status for action in session.actions.values()} <= {"done"}
    return session


def test_a_monitor_killed_at_its_first_second_third_durable_step_ends_like_an_undisturbed_one(
    make_session: Make,
) -> None:
    path = make_session()
    count_starts(path)

    for n in itertools.count(1):
        process = monitor(path, AUTOEXP_TEST_KILL_AT=str(n))
        code = process.wait(timeout=120)
        if code == 0:
            break
        assert code == -signal.SIGKILL, (path / "monitor.log").read_text()[-3000:]

    assert n > 10, "the hook killed nothing"
    session = assert_each_job_ran_once(path)
    reached = {name: job.iteration for name, job in session.jobs.items()}
    assert reached == {"demo": 300, "demo-cd100": 150, "demo-cd200": 250}


def test_random_kills_lose_and_double_nothing(make_session: Make) -> None:
    points = list(range(50, 300, 50))
    path = make_session(
        f"cooldowns=[{{at: {points}, decay: {{iterations: 20}}}},"
        f"{{at: {points}, name: b, decay: {{iterations: 30}}}}]",
        "backend.args.sleep_per_iteration_ms=40",
        "slurm.max_jobs=3",
    )
    count_starts(path)
    dice = random.Random(7)

    kills = 0
    process = monitor(path)
    while kills < KILLS:
        time.sleep(dice.uniform(1.5, 5.0))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
        Session.load(path)  # every file parses
        process = monitor(path)

    assert process.wait(timeout=300) == 0, (path / "monitor.log").read_text()[-3000:]
    assert len(assert_each_job_ran_once(path).jobs) == 11
    assert kills > 3


def wait_for_end_of_attempt(path: Path, job: str = "demo") -> None:
    attempt = Session.load(path).jobs[job].attempts[-1]
    ended = Path(attempt.log).parent / "exit.json"
    deadline = time.monotonic() + 60
    while not ended.exists():
        assert time.monotonic() < deadline, f"{job} does not end"
        time.sleep(0.1)


def kill_once_running(path: Path) -> None:
    process = monitor(path)
    deadline = time.monotonic() + 60
    while Session.load(path).jobs["demo"].state != "RUNNING":
        assert time.monotonic() < deadline, (path / "monitor.log").read_text()[-3000:]
        time.sleep(0.1)
    process.kill()
    process.wait()


def test_what_happened_while_nobody_watched_gets_its_verdict_and_its_cooldowns(
    make_session: Make,
) -> None:
    path = make_session()
    count_starts(path)
    kill_once_running(path)
    wait_for_end_of_attempt(path)

    assert monitor(path).wait(timeout=120) == 0

    assert_each_job_ran_once(path)


def test_a_training_that_failed_while_nobody_watched_has_failed(make_session: Make) -> None:
    path = make_session("backend.args.fail_at_iteration=150")
    edit_job(path, "demo-cd100", lambda c: c[: c.index(FAILS)] + c[c.index(FAILS) + 2 :])
    kill_once_running(path)
    wait_for_end_of_attempt(path)

    assert monitor(path).wait(timeout=120) == 1

    jobs = Session.load(path).jobs
    assert jobs["demo"].verdict is Verdict.FAILED
    assert "exit code 1" in (jobs["demo"].reason or "")
    # Its checkpoint at 100 was complete, and the one at 200 never came.
    assert jobs["demo-cd100"].verdict is Verdict.FINISHED
    assert "never started" in (jobs["demo-cd200"].reason or "")


def test_the_same_flow_run_run_again_finds_its_session(make_session: Make) -> None:
    path = make_session("cooldowns=[]")
    root = path.parent
    code = (
        "import asyncio, sys; from flows.train import train; "
        "asyncio.run(train(config='demo', overrides=sys.argv[1:], return_state=True))"
    )
    small = ["backend.args.train_iters=400", "backend.args.sleep_per_iteration_ms=20"]
    first = subprocess.Popen(
        [sys.executable, "-c", code, "cooldowns=[]", "project.name=again", *small],
        env={**os.environ, "AUTOEXP_SESSIONS": str(root)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not (made := list(root.glob("again-*/attempts/*/started.json"))):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    first.kill()
    first.wait()
    session = Session.load(made[0].parents[2])
    flow_run_id = session.meta.flow_run_ids[0]

    again = subprocess.run(
        [sys.executable, "-m", "prefect.flow_engine", "flows/train.py:train"],
        env={
            **os.environ,
            "AUTOEXP_SESSIONS": str(root),
            "PREFECT__FLOW_RUN_ID": flow_run_id,
            "PREFECT__FLOW_ENTRYPOINT": "flows/train.py:train",
        },
        cwd=Path(__file__).parents[2],
        capture_output=True,
        timeout=120,
    )

    assert again.returncode == 0, again.stderr[-3000:]
    session = Session.load(session.path)
    assert len(list(root.glob("again-*"))) == 1
    assert session.meta.flow_run_ids == [flow_run_id]
    assert [len(job.attempts) for job in session.jobs.values()] == [1]
    assert session.jobs["again"].verdict is Verdict.FINISHED
