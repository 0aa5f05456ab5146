"""Nothing lost, nothing doubled: real kills of a real monitor, with real jobs."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prefect import get_client

from autoexp.flows.train import train
from autoexp.monitor import monitor_starts
from autoexp.session.find import session_of
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.flows.commands import autoexp
from tests.flows.recovery.starts import assert_each_job_ran_once, count_starts
from tests.flows.sessions import BRANCHES, SMALL, Make, edit_job
from tests.patience import PATIENCE_S, until
from tests.sources import ROOT

pytestmark = pytest.mark.prefect

KILLS = int(os.environ.get("AUTOEXP_TEST_KILLS", "12"))
"""How many random kills; 100 take five minutes."""
FAILS = "--fail-at-iteration"


class Monitor:
    """The session flow in a process of its own, as Prefect would run it again."""

    def __init__(
        self, zygote: "subprocess.Popen[str]", path: Path, kill_at: int, flow_run_id: str | None
    ) -> None:
        assert zygote.stdin is not None
        assert zygote.stdout is not None
        self._answers = zygote.stdout
        order = {"session": path.name, "root": str(path.parent), "kill_at": kill_at}
        if flow_run_id is not None:
            order["flow_run_id"] = flow_run_id
        zygote.stdin.write(json.dumps(order) + "\n")
        zygote.stdin.flush()
        self.pid = int(self._answers.readline())
        self.is_over = False

    def wait(self) -> int:
        """The exit code, negative for a signal."""
        code = int(self._answers.readline())
        self.is_over = True
        return code

    def kill(self) -> int:
        os.kill(self.pid, signal.SIGKILL)
        return self.wait()


Watch = Callable[..., Monitor]


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator["subprocess.Popen[str]"]:
    """A process that has imported Prefect once for all monitors."""
    log = tmp_path_factory.mktemp("zygote") / "log"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "tests.flows.recovery.zygote"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as zygote,
    ):
        yield zygote
        assert zygote.stdin is not None
        zygote.stdin.close()


@pytest.fixture
def watch(zygote: "subprocess.Popen[str]") -> Iterator[Watch]:
    """Starts monitors; one that a test leaves behind ends with it, and is no other test's."""
    started: list[Monitor] = []

    def start(path: Path, kill_at: int = 0, run: str | None = None) -> Monitor:
        started.append(Monitor(zygote, path, kill_at, run))
        return started[-1]

    yield start
    for monitor in started:
        if not monitor.is_over:
            monitor.kill()


# A restart at iteration 10, before which nothing is saved; another job when the training is done.
RESTARTS = (
    "monitoring.log_events={again: {substring: 'iteration       10/', jobs: [train], "
    "actions: [{restart: {}}]}}"
)
# The training must not be over before its restart has died all its deaths.
SLOW_AT_FIRST = (
    '[ -e ../begun ] && exec "$@"; touch ../begun; exec "$@" --sleep-per-iteration-ms 1000'
)
STAGE = "stages={keep: {command: ['true'], after: {cd100: finished}}}"
LAUNCHES = (
    "monitoring.state_events={after: {verdict: finished, jobs: [train], "
    "actions: [{launch: {name: '{job.name}-eval', command: ['true']}}]}}"
)


def test_a_monitor_killed_at_its_first_second_third_durable_step_ends_like_an_undisturbed_one(
    make_session: Make, watch: Watch
) -> None:
    path = make_session(RESTARTS, LAUNCHES, STAGE)
    edit_job(path, "demo", lambda command: ["/bin/sh", "-c", SLOW_AT_FIRST, "sh", *command])
    count_starts(path)

    for n in itertools.count(1):
        code = watch(path, kill_at=n).wait()
        if code == 0:
            break
        assert code == -signal.SIGKILL

    assert n > 10, "the hook killed nothing"
    session = assert_each_job_ran_once(path, restarted="demo")
    reached = {name: job.iteration for name, job in session.jobs.items()}
    assert reached == {
        "demo": 300,
        "demo-eval": None,
        "demo-cd100": 150,
        "demo-cd200": 250,
        "demo-keep": None,
    }


def test_a_sweep_of_eighteen_jobs_two_at_a_time_ends_though_it_is_killed_in_the_middle(
    make_session: Make, watch: Watch
) -> None:
    path = make_session(
        *("backend.args.lr=3e-3,1e-2,3e-2", "backend.args.global_batch_size=32,64"),
        *(
            "slurm.max_jobs=2",
            "backend.args.hidden_size=32",
            "backend.args.sleep_per_iteration_ms=1",
        ),
    )
    count_starts(path)
    most = 0

    monitor = watch(path)
    deadline = time.monotonic() + PATIENCE_S
    while over(path) < 7:
        assert time.monotonic() < deadline
        # One reading takes a while, in which an attempt that it has seen may end and the next one
        # begin: those that two readings saw were all open between them.
        most = max(most, len(open_attempts(path) & open_attempts(path)))
        time.sleep(0.2)
    assert monitor.kill() == -signal.SIGKILL

    assert watch(path).wait() == 0
    session = assert_each_job_ran_once(path)
    assert len(session.jobs) == 18
    assert 1 <= most <= 2
    settings = {tuple(job.spec.settings.values()) for job in session.jobs.values()}
    assert len(settings) == 6
    for name, job in session.jobs.items():
        told = job.spec.command[job.spec.command.index("--lr") + 1]
        assert float(told) == job.spec.settings["backend.args.lr"], name


def open_attempts(path: Path) -> set[tuple[str, int]]:
    jobs = Session.load(path).jobs
    return {(name, attempt.number) for name, job in jobs.items() for attempt in job.open_attempts}


def over(path: Path) -> int:
    return sum(job.is_over for job in Session.load(path).jobs.values())


def test_random_kills_lose_and_double_nothing(make_session: Make, watch: Watch) -> None:
    """Eleven jobs, or with AUTOEXP_TEST_KILLS=100 a hundred kills of fifty-one jobs."""
    # Long enough for all the kills.
    step, milliseconds = (10, 250) if KILLS >= 100 else (50, 40)
    points = list(range(50, 300, step))
    path = make_session(
        f"cooldowns=[{{at: {points}, decay: {{iterations: 20}}}},"
        f"{{at: {points}, name: b, decay: {{iterations: 30}}}}]",
        f"backend.args.save_interval={step}",
        f"backend.args.sleep_per_iteration_ms={milliseconds}",
        "slurm.max_jobs=3",
    )
    count_starts(path)
    dice = random.Random(7)

    for _ in range(KILLS):
        monitor = watch(path)
        time.sleep(dice.uniform(0.2, 2.5))
        assert monitor.kill() == -signal.SIGKILL
        Session.load(path)  # every file parses

    assert watch(path).wait() == 0
    assert len(assert_each_job_ran_once(path).jobs) == 1 + 2 * len(points)


def wait_for_end_of_attempt(path: Path, job: str = "demo") -> None:
    attempt = Session.load(path).jobs[job].attempts[-1]
    ended = Path(attempt.log).parent / "exit.json"
    deadline = time.monotonic() + PATIENCE_S
    while not ended.exists():
        assert time.monotonic() < deadline, f"{job} does not end"
        time.sleep(0.1)


def kill_once_running(path: Path, watch: Watch) -> None:
    """The training goes on when its monitor is dead, not before: its end is seen by nobody."""
    dead = path / "dead"
    held = f'while [ ! -e {dead} ]; do sleep 0.1; done; exec "$@"'
    edit_job(path, "demo", lambda command: ["/bin/sh", "-c", held, "sh", *command])
    monitor = watch(path)
    until(lambda: Session.load(path).jobs["demo"].state == "RUNNING", "a running job")
    monitor.kill()
    dead.touch()


def test_what_happened_while_nobody_watched_gets_its_verdict_and_its_cooldowns(
    make_session: Make, watch: Watch
) -> None:
    path = make_session()
    count_starts(path)
    kill_once_running(path, watch)
    wait_for_end_of_attempt(path)

    assert watch(path).wait() == 0

    assert_each_job_ran_once(path)


def test_a_training_that_failed_while_nobody_watched_has_failed(
    make_session: Make, watch: Watch
) -> None:
    path = make_session("backend.args.fail_at_iteration=150")
    edit_job(path, "demo-cd100", lambda c: c[: c.index(FAILS)] + c[c.index(FAILS) + 2 :])
    kill_once_running(path, watch)
    wait_for_end_of_attempt(path)

    assert watch(path).wait() == 1

    jobs = Session.load(path).jobs
    assert jobs["demo"].verdict is Verdict.FAILED
    assert "exit code 1" in (jobs["demo"].reason or "")
    # Its checkpoint at 100 was complete, and the one at 200 never came.
    assert jobs["demo-cd100"].verdict is Verdict.FINISHED
    assert "never started" in (jobs["demo-cd200"].reason or "")


def test_what_is_asked_of_a_finished_session_is_done_when_it_is_resumed(
    make_session: Make, watch: Watch
) -> None:
    path = make_session("cooldowns=[]")
    assert watch(path).wait() == 0
    answer = autoexp("submit", "demo", *SMALL, BRANCHES, "--session", path.name, root=path.parent)
    assert answer.returncode == 0, answer.stderr

    assert watch(path).wait() == 0

    session = Session.load(path)
    assert [job.verdict for job in session.jobs.values()] == [Verdict.FINISHED] * 3
    assert [len(job.attempts) for job in session.jobs.values()] == [1, 1, 1]


def test_the_same_flow_run_run_again_finds_its_session(make_session: Make) -> None:
    path = make_session("cooldowns=[]")
    root = path.parent
    code = (
        "import asyncio, sys; from autoexp.flows.train import train; "
        "asyncio.run(train(config='demo', overrides=sys.argv[1:], return_state=True))"
    )
    small = ["backend.args.train_iters=400", "backend.args.sleep_per_iteration_ms=20"]
    first = subprocess.Popen(
        [sys.executable, "-c", code, "cooldowns=[]", "project.name=again", *small],
        env={**os.environ, "AUTOEXP_SESSIONS": str(root)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + PATIENCE_S
    while not (made := list(root.glob("again-*/attempts/*/started.json"))):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    first.kill()
    first.wait()
    session = Session.load(made[0].parents[2])
    flow_run_id = session.meta.flow_run_ids[0]

    again = subprocess.run(
        [sys.executable, "-m", "prefect.flow_engine", "autoexp.flows.train.train"],
        env={
            **os.environ,
            "AUTOEXP_SESSIONS": str(root),
            "PREFECT__FLOW_RUN_ID": flow_run_id,
            "PREFECT__FLOW_ENTRYPOINT": "autoexp.flows.train.train",
        },
        cwd=ROOT,
        capture_output=True,
        timeout=PATIENCE_S,
    )

    assert again.returncode == 0, again.stderr[-3000:]
    session = Session.load(session.path)
    assert len(list(root.glob("again-*"))) == 1
    assert session.meta.flow_run_ids == [flow_run_id]
    assert [len(job.attempts) for job in session.jobs.values()] == [1]
    assert session.jobs["again"].verdict is Verdict.FINISHED


def test_a_session_that_dies_at_every_start_fails_and_a_person_may_always_go_on(
    make_session: Make, watch: Watch
) -> None:
    path = make_session("cooldowns=[]")
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(train, parameters={"session": path.name})
        # The lease and the count are four steps: whatever is written after that is its death.
        for _ in range(monitor_starts.MOST_DEATHS):
            assert watch(path, 5, str(run.id)).wait() == -signal.SIGKILL

        assert watch(path, 0, str(run.id)).wait() == 1

        state = client.read_flow_run(run.id).state
    assert state is not None
    assert state.is_failed()
    message = state.message or ""
    assert message.startswith(f"{path.name}: its process died 5 times")
    assert f"`autoexp resume {path.name}`" in message
    assert Session.load(path).jobs["demo"].attempts == []
    assert not (path / "monitor.json").exists()

    answer = autoexp("resume", path.name, root=path.parent)

    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert not (path / monitor_starts.FILE).exists()


def test_a_monitor_that_is_told_to_stop_has_not_died(make_session: Make, watch: Watch) -> None:
    path = make_session("cooldowns=[]", "backend.args.sleep_per_iteration_ms=1000")
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(train, parameters={"session": path.name})
    monitor = watch(path, 0, str(run.id))
    until(lambda: Session.load(path).jobs["demo"].state == "RUNNING", "a running job")
    assert (path / monitor_starts.FILE).exists()

    # As a worker stops what it runs.
    os.kill(monitor.pid, signal.SIGTERM)

    monitor.wait()
    assert not (path / monitor_starts.FILE).exists()
    assert not (path / "monitor.json").exists()


def test_the_draft_of_a_killed_creation_is_nobodys_session(tmp_path: Path) -> None:
    for name in (".new-host-1-s", "s"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "session.json").write_text('{"flow_run_ids": ["a-flow-run"]}')
        found = session_of("a-flow-run", tmp_path)
        assert found == (tmp_path / name if name == "s" else None)
