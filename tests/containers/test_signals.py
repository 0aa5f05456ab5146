"""Signals on their way into an image, and what is left there after a kill."""

import os
import signal
from pathlib import Path

import pytest

from autoexp.payload import processes_with_cookie
from autoexp.schedulers.local import LocalScheduler
from tests.containers.boxes import COUNTS, SETS_OF_OPTIONS, Image, box
from tests.patience import until

STAYS = "import time; print('ready', flush=True); time.sleep(600)"
OPTIONS = pytest.mark.parametrize("options", SETS_OF_OPTIONS, ids=" ".join)


@OPTIONS
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1], ids=["cancel", "warning"])
def test_the_trainer_gets_a_signal_once(
    signum: signal.Signals, options: tuple[str, ...], image: Image, tmp_path: Path
) -> None:
    made = box(tmp_path, COUNTS, *image.overrides(*options))
    payload = made.start()
    until(lambda: "ready" in made.log, "the trainer")
    payload.send_signal(signum)
    assert payload.wait(60) == 0, made.log
    assert made.log.splitlines()[-1] == "1"


@OPTIONS
def test_a_payload_that_is_killed_leaves_nothing_that_a_retry_could_meet(
    options: tuple[str, ...], image: Image, tmp_path: Path
) -> None:
    made = box(tmp_path, STAYS, *image.overrides(*options))
    payload = made.start()
    until(lambda: "ready" in made.log, "the trainer")
    inside = [pid for pid in _processes() if STAYS in _command(pid)]
    assert inside
    payload.kill()
    payload.wait()

    scheduler = LocalScheduler()
    until(lambda: scheduler.query([made.ref])[made.ref.key].state == "FAILED", "its end")

    assert processes_with_cookie(made.ref.key, made.ref.directory) == []
    assert [pid for pid in _processes() if STAYS in _command(pid)] == []


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""
