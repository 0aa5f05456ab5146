"""What a terminal's process does when it is told to stop, and when Prefect's server is gone."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autoexp.session import Session
from flows.beside import stopping_on_signals
from flows.context import Foreground
from tests.flows.conftest import BRANCHES, PATIENCE_S, SMALL, Make, autoexp, until
from tests.flows.test_command_line import start_monitor, wait_until_running

pytestmark = pytest.mark.prefect


def test_a_kill_and_a_lost_terminal_end_the_watching_as_ctrl_c_does(make_session: Make) -> None:
    path = make_session("backend.args.sleep_per_iteration_ms=600")
    monitor = start_monitor(path)
    wait_until_running(path)
    wait_until_drawn(path)

    monitor.send_signal(signal.SIGTERM)

    output, _ = monitor.communicate(timeout=PATIENCE_S)
    assert monitor.returncode == 130, output
    assert "Traceback" not in output
    assert f"autoexp resume {path.name}" in output

    # As when ssh is cut off: the kernel sends SIGHUP, and whatever is printed then fails.
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["AUTOEXP_SESSIONS"] = str(path.parent)
        os.execl(sys.executable, sys.executable, "-m", "autoexp", "resume", path.name)
    said = b""
    while b"Stopped" not in said and b"running" not in said:
        said += os.read(terminal, 65536)
    os.close(terminal)

    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 130, said
    session = Session.load(path)
    assert session.jobs["demo"].state == "RUNNING"
    assert len(session.jobs["demo"].attempts) == 1
    assert not (path / "monitor.json").exists()


def wait_until_drawn(path: Path) -> None:
    """Every subflow has Prefect put its handler for SIGTERM once more."""
    until(lambda: list((path / "metrics").glob("demo.csv")), "the first iterations")


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    foreground = Foreground()
    foreground.is_begun = True
    try:
        with stopping_on_signals(foreground):
            os.kill(os.getpid(), signal.SIGHUP)
            assert foreground.stopped_by is None
            os.kill(os.getpid(), signal.SIGTERM)
            assert foreground.stopped_by == "SIGTERM"
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_server_that_dies_in_the_middle_keeps_nobody_waiting_at_the_end(tmp_path: Path) -> None:
    root = tmp_path / "sessions"
    impatient = (
        "import sys; from flows import beside, cli; beside._PATIENCE_S = 3.0;"
        "raise SystemExit(cli.main(sys.argv[1:]))"
    )
    words = ["run", "demo", "--session", "alone", *SMALL, BRANCHES]
    environment = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
    environment |= {"AUTOEXP_SESSIONS": str(root), "PREFECT_HOME": str(tmp_path / "prefect")}
    run = subprocess.Popen(
        [sys.executable, "-c", impatient, *words, "backend.args.sleep_per_iteration_ms=20"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_until_running_below(root / "alone")
    os.kill(server_of(run.pid), signal.SIGKILL)
    while not Session.load(root / "alone").is_over:
        assert run.poll() is None
        time.sleep(0.1)

    output, _ = run.communicate(timeout=PATIENCE_S)

    assert run.returncode == 0, output
    assert "demo-cd200: " in output
    assert "Prefect could not be told" in output
    assert "EventsWorker" not in output
    assert "Traceback" not in output


def wait_until_running_below(path: Path) -> None:
    until((path / "session.json").exists, "the session's directory")
    wait_until_running(path)


def server_of(pid: int) -> int:
    """The embedded server's process."""
    for child in Path(f"/proc/{pid}/task").glob("*/children"):
        for number in child.read_text().split():
            if b"flows.serve" in Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0"):
                return int(number)
    raise AssertionError("no server")


def test_a_server_that_is_not_there_is_one_line_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")  # nobody answers there
    refused = autoexp("run", "demo", "--session", "s", root=tmp_path)
    assert refused.returncode != 0
    assert "Traceback" not in refused.stdout + refused.stderr
    (line,) = refused.stderr.splitlines()
    assert "http://127.0.0.1:9/api does not answer" in line
    assert "`autoexp resume s`" in line
    assert Session.load(tmp_path / "s").jobs["demo"].attempts == []
