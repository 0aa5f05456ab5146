"""Two monitors on two hosts that both think that the session is theirs."""

import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.flows.commands import autoexp
from tests.flows.sessions import SMALL
from tests.patience import until
from tests.slurm.bench import clear_queue, slurm
from tests.slurm.cluster import undisturbed

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.prefect,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a process another host name"),
]

FREEZES = int(os.environ.get("AUTOEXP_TEST_FREEZES", "6"))
"""How many times a monitor is frozen; 30 take ten minutes."""
ID = f"frozen-{secrets.token_hex(2)}"
ELSEWHERE = ("unshare", "--uts", "sh", "-c", 'hostname elsewhere; exec "$@"', "sh")
COOLDOWNS = "cooldowns=[{every: 50, decay: {iterations: 20}}]"


@contextmanager
def monitor(path: Path, log: Path, *host: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A monitor of the session, here or on the host that this command makes; killed at the end."""
    command = [*host, sys.executable, "-m", "autoexp", "resume", path.name]
    environment = {**os.environ, "AUTOEXP_SESSIONS": str(path.parent)}
    with (
        log.open("ab") as said,
        subprocess.Popen(command, env=environment, stdout=said, stderr=said) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def holds(path: Path, process: "subprocess.Popen[bytes]") -> bool:
    """Whether the process got the lease, waited for; False once it has ended without."""

    def decided() -> bool:
        return process.poll() is not None or holder(path) == process.pid

    until(decided, "a monitor that holds the lease or has ended")
    return process.poll() is None


def holder(path: Path) -> int | None:
    try:
        return int(json.loads((path / "monitor.json").read_text())["pid"])
    except FileNotFoundError:
        return None


def be_silent(path: Path) -> None:
    """Let the last heartbeat be from before the silence after which a lease may be taken over."""
    try:
        os.utime(path / "monitor.json", (time.time() - 3600,) * 2)
    except FileNotFoundError:
        pass  # it ended well


def test_monitors_that_freeze_past_their_lease_and_wake_lose_and_double_nothing(
    prefect_server: None, tmp_path: Path
) -> None:
    del prefect_server
    dice = random.Random(11)
    log = tmp_path / "monitors.log"
    path = tmp_path / "sessions" / ID
    words = (
        *(*SMALL, "slurm=local_cluster", "slurm.gpus_per_node=0", "slurm.max_jobs=3", COOLDOWNS),
        *("backend.args.save_interval=50", "backend.args.sleep_per_iteration_ms=250"),
    )
    with undisturbed():
        made = autoexp("submit", "demo", *words, "--session", ID, root=path.parent)
        assert made.returncode == 0, made.stderr
        try:
            taken = sum(freeze(path, log, dice) for _ in range(FREEZES))

            assert autoexp("resume", ID, root=path.parent).returncode == 0
            assert_nothing_was_lost_or_doubled(Session.load(path))
            assert taken >= FREEZES // 2, log.read_text()
        finally:
            clear_queue(ID)


def freeze(path: Path, log: Path, dice: random.Random) -> bool:
    """Freeze a monitor, let another one work, thaw the first: whether there were two."""
    with monitor(path, log) as first:
        if not holds(path, first):
            return False
        time.sleep(dice.uniform(0, 6))
        first.send_signal(signal.SIGSTOP)
        be_silent(path)
        with monitor(path, log, *ELSEWHERE) as second:
            if not holds(path, second):
                return False  # the first was frozen in the middle of a write: it is not robbed
            time.sleep(dice.uniform(0, 6))
            first.send_signal(signal.SIGCONT)
            until(lambda: first.poll() is not None, "the end of who lost the lease")
            assert second.poll() in (None, 0), log.read_text()
        be_silent(path)
    return True


def assert_nothing_was_lost_or_doubled(session: Session) -> None:
    assert {job.verdict for job in session.jobs.values()} == {Verdict.FINISHED}
    assert len(session.jobs) > 3
    recorded = [a for job in session.jobs.values() for a in job.attempts]
    assert len(recorded) == len(session.jobs)
    rows = slurm("sacct", "-X", "-n", "-P", "-S", "now-2hours", "-o", "JobName,JobID").splitlines()
    accounted = Counter(row.split("|")[0] for row in rows if row.startswith(f"{ID}-"))
    assert accounted == Counter(attempt.key for attempt in recorded)
    keys = [entry.event.key for entry in session.journal.entries]
    assert len(keys) == len(set(keys))
