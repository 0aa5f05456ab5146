"""The lease: one monitor at a time; a dead one's is taken over, a live one's never."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autoexp.errors import SessionDamaged, SessionHeld
from autoexp.operations import requests
from autoexp.rules.events import JobAdded
from autoexp.schedulers.base import is_locked
from autoexp.session.inbox import CancelRequest, enqueue
from autoexp.session.session import Session
from autoexp.storage import lease, processes
from tests.processes import WaitFor

HOLD = """
import sys
from pathlib import Path
from autoexp.storage import lease
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


def test_a_pid_from_before_a_reboot_is_dead(session: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = processes.own_identity()["pid_namespace"]
    monkeypatch.setattr(processes, "_OF_THE_MACHINE", machine)
    written(session, boot_id="00000000-0000-0000-0000-000000000000")
    assert_free(session)


@pytest.mark.parametrize("age_s", [0, 170, -5, -100_000])
def test_a_monitor_on_another_host_is_alive_while_its_heart_beats(
    session: Path, age_s: float
) -> None:
    written(session, host="elsewhere", pid=77, age_s=age_s)
    with pytest.raises(SessionHeld, match="pid 77 on elsewhere"):
        lease.take(session)


def test_a_monitor_on_another_host_is_dead_after_its_silence(session: Path) -> None:
    written(session, host="elsewhere", pid=77, age_s=190)
    assert_free(session)


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"boot_id": "00000000-0000-0000-0000-000000000000", "host_id": "another"},
        {"boot_id": "00000000-0000-0000-0000-000000000000", "pid_namespace": "pid:[1]"},
        {"pid_namespace": "pid:[1]"},
    ],
    ids=["a clone", "a container before a reboot", "a container beside ours"],
)
def test_a_monitor_out_of_sight_under_the_hosts_name_is_judged_by_its_heartbeat(
    session: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: dict[str, str]
) -> None:
    monkeypatch.setattr(processes, "_OF_THE_MACHINE", "pid:[2]")  # we are in a container ourselves
    written(session, pid=1, start_ticks=1, **elsewhere)
    with pytest.raises(SessionHeld):
        lease.take(session)
    written(session, pid=1, start_ticks=1, **elsewhere, age_s=190)
    assert_free(session)


def test_from_outside_of_a_container_its_monitor_is_seen_alive_and_seen_dead(
    session: Path, wait_for: WaitFor
) -> None:
    command = ["unshare", "-pf", "--mount-proc", "--kill-child", sys.executable, "-c", HOLD]
    with subprocess.Popen(
        [*command, str(session)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        if process.stdout.readline() != b"held\n":
            pytest.skip("pid namespaces need root here")
        os.utime(session / lease.FILE, (0, 0))  # its process is asked, not its heart
        with pytest.raises(SessionHeld, match="pid 1 on"):
            lease.take(session)
        process.kill()
    os.utime(session / lease.FILE)
    if processes.own_identity()["pid_namespace"] == processes._OF_THE_MACHINE:
        wait_for(lambda: not (lease.look(session) or (None, 0, False))[2], "its end")
        assert_free(session)


def test_a_heartbeat_from_the_future_says_what_to_do_if_that_monitor_is_gone(session: Path) -> None:
    written(session, host="elsewhere", pid=77, age_s=-7200)
    assert lease.look(session) == ("elsewhere", 77, True)
    with pytest.raises(SessionHeld, match=r"dated 7[12]\d\d s ahead .* remove .*monitor.json"):
        lease.take(session)
    (session / lease.FILE).unlink()
    assert_free(session)


@pytest.mark.parametrize("ahead_s", [-86_400, -600, 600, 86_400])
@pytest.mark.parametrize(("age_s", "alive"), [(5, True), (170, True), (190, False)])
def test_a_heartbeat_is_dated_by_the_file_servers_clock_and_never_by_ours(
    session: Path, monkeypatch: pytest.MonkeyPatch, ahead_s: float, age_s: float, alive: bool
) -> None:
    server = time.time() + ahead_s
    (session / lease.LOCK).touch()
    written(session, host="elsewhere", pid=77)
    os.utime(session / lease.FILE, (server - age_s,) * 2)
    utime = os.utime
    monkeypatch.setattr(os, "utime", lambda path, at=None: utime(path, at or (server, server)))
    assert lease.look(session) == ("elsewhere", 77, alive)


def test_who_may_only_read_judges_by_the_clock_at_hand(
    session: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError

    written(session, host="elsewhere", pid=77, age_s=190)
    (session / lease.LOCK).touch()
    monkeypatch.setattr(os, "utime", forbidden)
    assert lease.look(session) == ("elsewhere", 77, False)


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
    with pytest.raises(SessionHeld, match=r"demo-1: the lease .* is no longer this monitor's"):
        held.beat()


# Two that think they hold it

WRITER = """
import sys
from pathlib import Path
from autoexp.storage import lease
lease.HEARTBEAT_S = float(sys.argv[2])
held = lease.take(Path(sys.argv[1]))
lines = Path(sys.argv[1], "lines").open("a", buffering=1)
print("held", flush=True)
try:
    for number in range(10**9):
        with held.writing():
            print(held._path.parent.joinpath("go").exists() and "late" or "early", file=lines)
except lease.SessionHeld as error:
    print("lost", error, flush=True)
"""


@pytest.fixture
def writer(session: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A monitor that writes all the time, and beats so seldom that no beat tells it anything."""
    command = [sys.executable, "-c", WRITER, str(session), "1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_monitor_that_was_stopped_for_longer_than_the_silence_writes_nothing_when_it_wakes(
    session: Path,
    writer: "subprocess.Popen[bytes]",
    wait_for: WaitFor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = session / "lines"
    wait_for(lambda: lines.exists() and lines.stat().st_size > 1000, "lines")
    # Seen from another host, silent for long; wherever it is stopped, in a round or between two.
    monkeypatch.setattr(processes, "is_alive", lambda _: None)
    monkeypatch.setattr(lease, "SILENCE_S", 0.0)
    monkeypatch.setattr(lease, "_PATIENCE_S", 0.2)
    taken = None
    while taken is None:
        os.kill(writer.pid, signal.SIGSTOP)
        try:
            taken = lease.take(session)
        except SessionHeld as error:  # it was in the middle of a round
            assert "hangs in it" in str(error)
            os.kill(writer.pid, signal.SIGCONT)
    (session / "go").touch()
    before = lines.read_bytes()

    os.kill(writer.pid, signal.SIGCONT)

    assert writer.stdout is not None
    assert b"is no longer this monitor's" in writer.stdout.readline()
    assert lines.read_bytes() == before
    assert taken.still_held()


def test_who_is_stopped_in_the_middle_of_a_round_is_not_taken_over(
    session: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = lease.take(session)
    monkeypatch.setattr(processes, "is_alive", lambda _: None)
    monkeypatch.setattr(lease, "SILENCE_S", 0.0)
    monkeypatch.setattr(lease, "_PATIENCE_S", 0.1)
    with held.writing(), pytest.raises(SessionHeld, match="remove that file if its host is gone"):
        lease.take(session)
    assert held.still_held()
    lease.take(session)
    assert not held.still_held()


def test_a_lease_that_is_lost_inside_of_a_round_is_noticed_before_the_next_write(
    session: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where locks reach no other host."""
    clock = [1000.0]
    monkeypatch.setattr(lease, "_elapsed", lambda: clock[0])
    held = lease.take(session)
    with held.writing():
        written(session, host="elsewhere")
        clock[0] += lease.SILENCE_S
        with pytest.raises(SessionHeld), held.writing():
            pytest.fail("written after the lease was lost")


def test_looks_inside_of_a_round_cost_nothing(
    session: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = lease.take(session)
    looks: list[Path] = []
    monkeypatch.setattr(held, "still_held", lambda: looks.append(session) or True)
    with held.writing():
        for _ in range(100):
            with held.writing():
                pass
    assert len(looks) == 1


def test_a_session_whose_lease_was_taken_over_writes_no_file(session_path: Path) -> None:
    with Session.hold(session_path) as (held, _):
        written(session_path, host="elsewhere")
        job = next(iter(held.jobs.values()))
        before = {path: path.read_bytes() for path in session_path.rglob("*") if path.is_file()}
        writes: list[Callable[[], object]] = [
            held.save_meta,
            lambda: held.save_job(job),
            lambda: held.change_job(job, reason="x"),
            lambda: held.record([JobAdded(job=job.spec.name, by="x")]),
            lambda: held.log_progress(job, ["1,2,3\n"]),
            lambda: requests.process_requests(held),
        ]
        enqueue(session_path, CancelRequest(by="somebody"))
        request = next((session_path / "inbox").iterdir())
        for write in writes:
            with pytest.raises(SessionHeld):
                write()
        assert request.exists()
        request.unlink()
        assert before == {p: p.read_bytes() for p in session_path.rglob("*") if p.is_file()}


def test_a_session_that_was_taken_away_ends_its_monitor(session: Path) -> None:
    held = lease.take(session)
    session.rename(session.with_name("moved"))
    assert not held.still_held()
    with pytest.raises(SessionHeld, match="it was removed or moved away"), held.writing():
        pytest.fail("written into nowhere")
    assert not is_locked(session / "attempts" / "t-a1")
    assert not session.exists()


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
