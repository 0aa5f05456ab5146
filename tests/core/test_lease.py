"""The lease: one monitor at a time; a dead one's is taken over, a live one's never."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoexp import lease, processes
from autoexp.errors import SessionDamaged, SessionHeld
from tests.core.conftest import WaitFor

HOLD = """
import sys
from pathlib import Path
from autoexp import lease
held = lease.take(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def session(tmp_path: Path) -> Path:
    path = tmp_path / "demo-1"
    path.mkdir()
    return path


@pytest.fixture
def holder(session: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Another process that holds the session."""
    command = [sys.executable, "-c", HOLD, str(session)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def written(session: Path, *, age_s: float = 0.0, **changes: Any) -> None:
    """A lease as this process would have written it, but for the changes."""
    content = {**(processes.identity(os.getpid()) or {}), "since": 0.0} | changes
    path = session / lease.FILE
    path.write_text(json.dumps(content))
    os.utime(path, (time.time() - age_s,) * 2)


def assert_free(session: Path) -> None:
    lease.take(session).release()
    assert lease.look(session) is None


def test_a_second_monitor_is_refused_with_the_firsts_host_and_pid(
    session: Path, holder: "subprocess.Popen[bytes]"
) -> None:
    with pytest.raises(SessionHeld) as refused:
        lease.take(session)
    message = str(refused.value)
    assert message.startswith(
        f"demo-1: held by the monitor with pid {holder.pid} on {socket.gethostname()}"
    )
    assert refused.value.exit_code == 3
    assert lease.look(session) == (socket.gethostname(), holder.pid, True)


def test_a_killed_monitors_lease_is_taken_over(
    session: Path, holder: "subprocess.Popen[bytes]"
) -> None:
    holder.kill()
    holder.wait()
    assert lease.look(session) == (socket.gethostname(), holder.pid, False)
    lease.take(session)
    assert lease.look(session) == (socket.gethostname(), os.getpid(), True)


def test_a_killed_monitor_that_nobody_has_waited_for_counts_as_dead(
    session: Path, holder: "subprocess.Popen[bytes]", wait_for: WaitFor
) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    stat = Path(f"/proc/{holder.pid}/stat")
    wait_for(lambda: stat.read_text().rsplit(")")[1].split()[0] == "Z", "the zombie")
    lease.take(session)


def test_a_stopped_monitor_is_alive(session: Path, holder: "subprocess.Popen[bytes]") -> None:
    os.kill(holder.pid, signal.SIGSTOP)
    with pytest.raises(SessionHeld):
        lease.take(session)


def test_of_many_monitors_that_find_a_dead_one_exactly_one_takes_over(session: Path) -> None:
    written(session, start_ticks=1)
    reader, writer = os.pipe()
    children = []
    for _ in range(6):
        child = os.fork()
        if child == 0:
            try:
                os.close(reader)
                lease.take(session)
                os.write(writer, b"took ")
                signal.pause()
            except SessionHeld:
                os.write(writer, b"held ")
            finally:
                os._exit(0)
        children.append(child)
    os.close(writer)
    answers = b""
    while answers.count(b" ") < 6:
        answers += os.read(reader, 100)
    os.close(reader)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert sorted(answers.split()) == [b"held"] * 5 + [b"took"]


# Who is alive


def test_a_pid_that_another_process_has_by_now_is_dead(session: Path) -> None:
    written(session, start_ticks=1)
    assert_free(session)


def test_a_pid_from_before_a_reboot_is_dead(session: Path) -> None:
    written(session, boot_id="00000000-0000-0000-0000-000000000000")
    assert_free(session)


@pytest.mark.parametrize("age_s", [0, 170, -5])
def test_a_monitor_on_another_host_is_alive_while_its_heart_beats(
    session: Path, age_s: float
) -> None:
    written(session, host="elsewhere", pid=77, age_s=age_s)
    with pytest.raises(SessionHeld, match="pid 77 on elsewhere"):
        lease.take(session)


@pytest.mark.parametrize("age_s", [190, -100_000])
def test_a_monitor_on_another_host_is_dead_after_its_silence(session: Path, age_s: float) -> None:
    written(session, host="elsewhere", pid=77, age_s=age_s)
    assert_free(session)


def test_a_live_monitor_on_this_host_is_never_given_up_for_its_silence(
    session: Path, holder: "subprocess.Popen[bytes]"
) -> None:
    os.utime(session / lease.FILE, (0, 0))
    with pytest.raises(SessionHeld):
        lease.take(session)


# The heart


def test_a_beat_renews_the_lease_without_writing_it(
    session: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = lease.take(session)
    content = (session / lease.FILE).read_bytes()
    os.utime(session / lease.FILE, (0, 0))
    held.beat()
    assert (session / lease.FILE).stat().st_mtime == 0, "not due yet"
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.0)
    held.beat()
    assert (session / lease.FILE).stat().st_mtime > time.time() - 60
    assert (session / lease.FILE).read_bytes() == content


def test_a_monitor_whose_lease_was_taken_over_meanwhile_learns_it(
    session: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.0)
    held = lease.take(session)
    written(session, host="elsewhere")
    with pytest.raises(SessionHeld, match=r"demo-1: the lease .* is not this monitor's any more"):
        held.beat()


def test_a_monitor_gives_back_its_own_lease_and_nobody_elses(session: Path) -> None:
    held = lease.take(session)
    written(session, host="elsewhere")
    held.release()
    assert lease.look(session) == ("elsewhere", os.getpid(), True)

    (session / lease.FILE).unlink()
    held = lease.take(session)
    held.release()
    held.release()
    assert not (session / lease.FILE).exists()


@pytest.mark.parametrize(
    "content",
    [b"", b'{"host": "h", "pi', b"{}", b"[]", b"null", b"7", b'{"host":"h","pid":"x"}', b"\xff"],
)
def test_a_damaged_lease_is_named_with_what_to_do(session: Path, content: bytes) -> None:
    path = session / lease.FILE
    path.write_bytes(content)
    with pytest.raises(SessionDamaged) as damaged:
        lease.take(session)
    assert str(damaged.value).startswith(f"{path} does not parse")
    assert "make sure that no monitor runs, then remove it" in str(damaged.value)
    assert path.read_bytes() == content
