"""On a node that ends processes for their CPU time, by real limits of the kernel."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoexp.flows.concurrency import ration, successor
from autoexp.session.session import Session
from autoexp.storage import lease
from tests.flows.commands import autoexp, interrupt, start_monitor, wait_until_running
from tests.flows.sessions import Make
from tests.patience import PATIENCE_S, until

pytestmark = pytest.mark.prefect

LIMIT_S = 20
# The monitor has much to read, and uses up its time within a minute or two.
BUSY = (
    "cooldowns=[]",
    "backend.args.train_iters=1000000",
    "backend.args.save_interval=1000000",
    "backend.args.sleep_per_iteration_ms=10",
    "backend.args.log_interval=1",
    "monitoring.file_tick_s=0.01",
    "monitoring.save_progress_every_s=0.01",
    "monitoring.publish_every_s=3600",
)


@pytest.fixture
def busy(make_session: Make) -> Iterator[Path]:
    """A session with a job that runs, started without a limit, and without a monitor."""
    path = make_session(*BUSY)
    first = start_monitor(path)
    wait_until_running(path)
    interrupt(first)
    yield path
    autoexp("cancel", path.name, root=path.parent)


def watch(path: Path, output: Path, limit_s: int | None) -> "subprocess.Popen[bytes]":
    """`autoexp resume` as a shell starts it after `ulimit -t`."""

    def limit() -> None:
        if limit_s is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s))

    with output.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "autoexp", "resume", path.name],
            env={**os.environ, "AUTOEXP_SESSIONS": str(path.parent)},
            stdout=file,
            stderr=file,
            process_group=0,
            preexec_fn=limit,
        )


def holder(path: Path) -> int:
    found = lease.look(path)
    return found.pid if found is not None and found.alive else 0


def job_of(path: Path) -> tuple[int, int]:
    """How many attempts the job has, and its iteration."""
    job = Session.load(path).jobs["demo"]
    return len(job.attempts), job.iteration or 0


def test_a_monitor_hands_over_before_its_cpu_time_is_used_up(busy: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    monitor = watch(busy, output, LIMIT_S)
    until(lambda: holder(busy) == monitor.pid, "the first one's lease")
    until(lambda: holder(busy) not in (0, monitor.pid), "the successor's lease", seconds=1800)
    _, iteration = job_of(busy)
    until(lambda: job_of(busy)[1] > iteration, "further iterations")
    # Whoever waits for the first one waits on, and what it is told reaches the successor.
    assert monitor.poll() is None
    os.killpg(monitor.pid, signal.SIGINT)
    assert monitor.wait(PATIENCE_S) == 130
    said = output.read_text()
    assert "another one goes on with the session" in said
    assert said.count("session demo") >= 2 or said.count(f"session {busy.name} in") == 2
    assert job_of(busy)[0] == 1 and holder(busy) == 0


def test_nothing_is_lost_where_a_monitor_is_ended_all_the_same(busy: Path, tmp_path: Path) -> None:
    monitor = watch(busy, tmp_path / "output", None)
    until(lambda: holder(busy) == monitor.pid, "its lease")
    _, iteration = job_of(busy)
    until(lambda: job_of(busy)[1] > iteration, "further iterations")
    resource.prlimit(monitor.pid, resource.RLIMIT_CPU, (1, 1))
    assert monitor.wait(PATIENCE_S) in (-signal.SIGXCPU, -signal.SIGKILL)
    _, iteration = job_of(busy)
    second = start_monitor(busy)
    until(lambda: job_of(busy)[1] > iteration, "further iterations")
    interrupt(second)
    assert job_of(busy)[0] == 1


def test_what_a_site_is_known_for_counts_beside_the_kernels_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def limited(soft: int) -> None:
        monkeypatch.setattr("resource.getrlimit", lambda _: (soft, resource.RLIM_INFINITY))

    limited(resource.RLIM_INFINITY)
    assert ration.limit_s(None) is None
    assert ration.limit_s(600.0) == 600.0
    limited(60)
    assert ration.limit_s(None) == ration.limit_s(600.0) == 60.0


def test_who_waits_for_a_successor_ends_as_it_does(tmp_path: Path) -> None:
    def ended(code: str) -> int:
        waits = [sys.executable, "-I", "-S", successor.__file__]
        return subprocess.run([*waits, sys.executable, "-c", code]).returncode

    assert ended("raise SystemExit(7)") == 7
    assert ended("import os; os.kill(os.getpid(), 9)") == 128 + 9
    # A job of this machine that ends meanwhile is not the successor.
    assert ended("import os; os.fork() or os._exit(1); os.wait(); raise SystemExit(0)") == 0


def test_a_lease_of_another_process_is_not_forsaken(make_session: Make) -> None:
    path = make_session("cooldowns=[]")
    with Session.hold(path):
        text = (path / lease.FILE).read_text()
        other = text.replace(f'"pid": {os.getpid()}', '"pid": 1')
        assert other != text
        (path / lease.FILE).write_text(other)
        lease.forsake(path)
        assert (path / lease.FILE).exists()
        (path / lease.FILE).write_text(text)
        lease.forsake(path)
        assert not (path / lease.FILE).exists()
