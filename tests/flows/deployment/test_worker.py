"""How `autoexp worker` ends, in front of a program that stands for Prefect's worker."""

import errno
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoexp.flows.deployment import deploy
from bench.world.measure import counted_calls
from tests.patience import until

# Says what it does about Ctrl-C, and ends by it alone, as Prefect's worker does.
STANDS_FOR_PREFECT = """
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
with open(os.environ["READY"], "w") as ready:
    ready.write("a group of its own" if os.getpgrp() == os.getpid() else "ours")
{then}
while True:
    time.sleep(0.05)
"""
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTSTP)
HANGS = "signal.signal(signal.SIGINT, signal.SIG_IGN)"


@pytest.fixture(autouse=True)
def server_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that is ours, as far as the worker is told; signals as they were before."""
    monkeypatch.setattr(deploy, "refuse_strangers", lambda _: None)
    monkeypatch.setattr(deploy, "problem", lambda *_: None)
    monkeypatch.setattr(deploy, "_must_be_locked", lambda *_: None)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("READY", str(tmp_path / "ready"))
    before = {number: signal.getsignal(number) for number in STOPS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def stopped(folder: Path, then: str = "") -> int:
    """The exit code of a worker that gets SIGTERM once it runs."""
    ready = folder / "ready"
    (folder / "prefect").mkdir()
    (folder / "prefect" / "__init__.py").touch()
    (folder / "prefect" / "__main__.py").write_text(STANDS_FOR_PREFECT.format(then=then))

    def stop() -> None:
        until(lambda: ready.exists() and ready.read_text(), "a worker that runs")
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop)
    stopper.start()
    try:
        return deploy.worker("a-pool")
    finally:
        stopper.join()


def test_a_worker_that_was_started_without_ctrl_c_stops_when_it_is_told_to(tmp_path: Path) -> None:
    # As a script does with what it starts in the background.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert stopped(tmp_path) == 128 + signal.SIGINT


def test_a_worker_that_cannot_stop_is_killed_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # As when its server has ended at the same time, and it has still to tell it something.
    monkeypatch.setattr(deploy, "_STOPS_WITHIN_S", 0.0)
    assert stopped(tmp_path, HANGS) == 128 + signal.SIGKILL
    assert "was killed" in capsys.readouterr().out


@pytest.mark.parametrize("kernel", ["new", "old"])
def test_whoever_watches_a_worker_sleeps_meanwhile(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy, "_LOOKS_EVERY_S", 0.3)
    if kernel == "old":
        monkeypatch.setattr(os, "pidfd_open", raising)
    with subprocess.Popen(["sleep", "1000"]) as process:
        with counted_calls() as calls:
            assert deploy._ended(process) is None
        process.kill()
        until(lambda: deploy._ended(process) == -signal.SIGKILL, "the end of the process")
    assert calls["waitpid"] == 2
    assert calls["sleep"] + calls["select"] == 1


def raising(pid: int) -> int:
    """As `pidfd_open` on a kernel without it."""
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def test_ctrl_c_on_a_terminal_reaches_the_worker_once(tmp_path: Path) -> None:
    assert stopped(tmp_path) == 128 + signal.SIGINT
    assert (tmp_path / "ready").read_text() == "a group of its own"


def test_ctrl_z_stops_the_worker_before_who_watches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[object] = []

    class Process:
        def send_signal(self, number: int) -> None:
            sent.append(("the worker", number))

    monkeypatch.setattr(signal, "raise_signal", lambda number: sent.append(("we", number)))
    deploy._pause(Process())  # type: ignore[arg-type]
    both = ("the worker", signal.SIGSTOP), ("we", signal.SIGSTOP)
    assert sent == [*both, ("the worker", signal.SIGCONT)]
