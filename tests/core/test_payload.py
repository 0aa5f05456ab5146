"""What runs inside a job, as real processes: one run per key, signals passed on, nothing left."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from autoexp import payload
from autoexp.payload import process_identity
from tests.processes import Job, JobOf, WaitFor, is_alive

Payload = subprocess.Popen[bytes]
Start = Callable[..., AbstractContextManager[Payload]]
Run = Callable[..., int]

# Says that it is there, then waits for whatever the test sends.
PATIENT = "echo ready; while :; do sleep 0.02; done"

# A trainer that saves at a signal, which takes a moment. In Python: a shell forks all the time, and
# a signal to the whole group may meet it between the fork and the exec.
SAVES_AT = """
import signal, sys, time

def save(signum, frame):
    time.sleep(0.3)
    print("saved", flush=True)
    sys.exit(0)

signal.signal(signal.{name}, save)
print("ready", flush=True)
while True:
    signal.pause()
"""


@pytest.fixture
def start(no_survivors: None) -> Start:
    """`with start(job, id):` the payload runs as a scheduler starts it, and has ended afterwards.

    It is the copy in the attempt's directory, with the scheduler's id in its environment.
    """

    @contextmanager
    def running(job: Job, job_id: str = "41", **environment: str) -> Iterator[Payload]:
        if not job.directory.exists():
            job.prepare()
        process = subprocess.Popen(
            [sys.executable, str(job.directory / "payload.py")],
            env={**os.environ, "SUBMITIT_LOCAL_JOB_ID": job_id, **environment},
        )
        try:
            yield process
            process.wait(20)
        finally:
            process.kill()
            process.wait()

    return running


@pytest.fixture
def run(start: Start) -> Run:
    """Run the payload to its end; returns its exit code."""

    def to_the_end(*args: Any, **environment: str) -> int:
        with start(*args, **environment) as process:
            return process.wait(20)

    return to_the_end


# Endings


def test_the_commands_exit_code_is_written_and_returned(job_of: JobOf, run: Run) -> None:
    job = job_of("sh", "-c", "exit 3")
    assert run(job) == 3
    ended = job.read("exit.json")
    assert (ended["exit_code"], ended["signal"], ended["reason"]) == (3, None, None)
    assert (ended["warned"], ended["terminated"], ended["limit"]) == (False, False, False)
    assert ended["job_id"] == job.read("started.json")["job_id"] == "41"
    assert ended["ended_at"] >= ended["started_at"] > 0


def test_a_command_that_does_not_exist_is_127_with_its_name(job_of: JobOf, run: Run) -> None:
    job = job_of("/no/such/trainer", "--lr", "1")
    assert run(job) == 127
    ended = job.read("exit.json")
    assert ended["exit_code"] == 127
    assert ended["reason"].startswith("could not start: ")
    assert "/no/such/trainer" in ended["reason"]


def test_a_directory_that_vanished_is_named_as_the_reason(job_of: JobOf, run: Run) -> None:
    job = job_of("true")
    job.prepare()
    job.output.rmdir()
    assert run(job) == 127
    assert str(job.output) in job.read("exit.json")["reason"]


def test_a_death_by_signal_is_recorded_as_that_signal(job_of: JobOf, run: Run) -> None:
    job = job_of("sh", "-c", "kill -SEGV $$")
    assert run(job) == 128 + signal.SIGSEGV
    ended = job.read("exit.json")
    assert (ended["exit_code"], ended["signal"]) == (None, signal.SIGSEGV)


# Once


def test_a_second_copy_under_another_id_ends_well_and_runs_nothing(job_of: JobOf, run: Run) -> None:
    job = job_of("sh", "-c", "echo run >> runs; exit 5")
    assert run(job, "41") == 5
    before = {path.name: path.read_bytes() for path in job.directory.iterdir()}
    assert run(job, "42") == 0
    assert (job.output / "runs").read_text() == "run\n"
    assert {path.name: path.read_bytes() for path in job.directory.iterdir()} == before
    assert (job.directory / "claim").read_text() == "41"


def test_a_second_copy_while_the_first_one_runs_leaves_it_alone(
    job_of: JobOf, start: Start, run: Run, wait_for: WaitFor
) -> None:
    job = job_of("sh", "-c", PATIENT)
    with start(job, "41") as first:
        wait_for(lambda: b"ready" in job.log, "the command")
        assert run(job, "42") == 0
        assert first.poll() is None
        first.terminate()
    assert job.log.count(b"ready") == 1


def test_a_requeued_job_comes_under_its_own_id_and_runs_again(job_of: JobOf, run: Run) -> None:
    job = job_of("sh", "-c", "echo run >> runs")
    assert run(job) == run(job) == 0
    assert (job.output / "runs").read_text() == "run\nrun\n"


def test_a_requeued_job_is_not_told_by_its_first_runs_exit_file(
    job_of: JobOf, start: Start, run: Run, wait_for: WaitFor
) -> None:
    job = job_of("sh", "-c", f"test -e again || {{ touch again; exit 7; }}; {PATIENT}")
    assert run(job) == 7
    with start(job) as second:
        wait_for(lambda: b"ready" in job.log, "the second run")
        assert not (job.directory / "exit.json").exists()
        second.terminate()


# Signals


def test_a_termination_is_passed_on(job_of: JobOf, start: Start, wait_for: WaitFor) -> None:
    job = job_of(sys.executable, "-c", SAVES_AT.format(name="SIGTERM"))
    with start(job) as process:
        wait_for(lambda: b"ready" in job.log, "the command")
        process.terminate()
    assert process.returncode == 0
    assert b"saved" in job.log
    assert job.read("exit.json")["terminated"] is True


def test_a_signal_that_comes_while_the_command_is_being_started_is_passed_on_too(
    job_of: JobOf,
) -> None:
    job = job_of("sleep", "60")
    job.prepare()
    early = (
        "import json, sys; from autoexp.payload import Supervisor\n"
        "spec = json.load(open(sys.argv[1])); supervisor = Supervisor(spec)\n"
        "supervisor._on_signal(15, None); print(supervisor.run(spec['command']))"
    )
    spec = str(job.directory / "spec.json")
    assert subprocess.check_output([sys.executable, "-c", early, spec], timeout=120) == b"-15\n"


def test_a_command_that_ignores_it_is_killed_after_the_grace_time(
    job_of: JobOf, start: Start, wait_for: WaitFor
) -> None:
    job = job_of("sh", "-c", f"trap '' TERM; {PATIENT}")
    job.prepare(grace_s=0.2)
    with start(job) as process:
        wait_for(lambda: b"ready" in job.log, "the command")
        process.terminate()
    assert process.returncode == 128 + signal.SIGKILL
    ended = job.read("exit.json")
    assert (ended["signal"], ended["terminated"]) == (signal.SIGKILL, True)


@pytest.mark.parametrize(
    ("warning", "understood"),
    [(signal.SIGUSR1, "TERM"), (signal.SIGUSR2, "TERM"), (signal.SIGUSR1, "USR1")],
)
def test_a_warning_reaches_the_command_as_the_signal_it_understands(
    job_of: JobOf, start: Start, wait_for: WaitFor, warning: int, understood: str
) -> None:
    # Saving takes longer than the grace time here: a warning is no order to end.
    job = job_of(sys.executable, "-c", SAVES_AT.format(name=f"SIG{understood}"))
    job.prepare(grace_s=0.1)
    spec = job.directory / "spec.json"
    spec.write_text(spec.read_text().replace('"SIGTERM"', f'"SIG{understood}"'))
    with start(job) as process:
        wait_for(lambda: b"ready" in job.log, "the command")
        process.send_signal(warning)
    assert process.returncode == 0
    assert b"saved" in job.log
    ended = job.read("exit.json")
    assert (ended["warned"], ended["terminated"], ended["exit_code"]) == (True, False, 0)


def test_the_end_of_the_time_limit_is_noted(job_of: JobOf, start: Start, wait_for: WaitFor) -> None:
    job = job_of("sh", "-c", f"trap '' INT TERM; {PATIENT}")
    with start(job) as process:
        wait_for(lambda: b"ready" in job.log, "the command")
        process.send_signal(signal.SIGINT)
    assert job.read("exit.json")["limit"] is True


# Nothing stays behind


def test_a_killed_payload_takes_the_command_with_it(
    job_of: JobOf, start: Start, wait_for: WaitFor
) -> None:
    job = job_of("sh", "-c", "echo $$; exec sleep 60")
    with start(job) as process:
        wait_for(lambda: b"\n" in job.log, "the command's pid")
        process.kill()
    wait_for(lambda: not is_alive(job.log.decode()), "the command's end")
    assert not (job.directory / "exit.json").exists()


def test_what_the_command_leaves_behind_is_killed(
    job_of: JobOf, run: Run, wait_for: WaitFor
) -> None:
    # For an hour: it is its kill that ends it. A killed process takes a moment to be gone.
    job = job_of("sh", "-c", "setsid sleep 3600 & echo $!; exit 0")
    assert run(job) == 0
    wait_for(lambda: not is_alive(job.log.decode()), "the end of what it left behind")


def hurry(job: Job) -> None:
    """Have the copy of the payload look at the owner often, so that the test need not wait."""
    job.prepare()
    copy = job.directory / "payload.py"
    text = copy.read_text()
    assert "_OWNER_CHECK_S = 5.0" in text
    copy.write_text(text.replace("_OWNER_CHECK_S = 5.0", "_OWNER_CHECK_S = 0.2"))


def test_an_attempt_that_was_given_up_ends_before_its_successors_command_starts(
    job_of: JobOf, start: Start, run: Run, wait_for: WaitFor
) -> None:
    first = job_of("sh", "-c", f"echo $$; {PATIENT}", number=1)
    hurry(first)
    with start(first, "41") as process:
        wait_for(lambda: b"ready" in first.log, "the first attempt")
        pid = first.log.split()[0].decode()
        second = job_of("sh", "-c", f"kill -0 {pid} && echo beside; true", number=2)
        hurry(second)
        assert run(second, "42") == 0
        process.wait(20)
    assert b"beside" not in second.log
    assert first.read("exit.json")["superseded"] is True
    assert second.read("exit.json")["superseded"] is False


def test_a_requeued_run_waits_until_the_one_on_a_node_out_of_reach_has_noticed(
    job_of: JobOf, start: Start, run: Run, wait_for: WaitFor
) -> None:
    # The same attempt under the same id, run again by SLURM while the first run still lives.
    job = job_of("sh", "-c", f"echo $$; [ -e again ] || {{ {PATIENT}; }}; kill -0 $(cat again)")
    hurry(job)
    with start(job, "41") as process:
        wait_for(lambda: b"ready" in job.log, "the first run")
        (job.output / "again").write_bytes(job.log.split()[0])
        assert run(job, "41", SLURM_RESTART_COUNT="1") == 1, "the first run was still there"
        process.wait(20)


def test_a_process_is_known_by_more_than_its_pid(wait_for: WaitFor) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        known = process_identity(process.pid)
        assert known is not None
        assert known == process_identity(process.pid)
        assert known["start_ticks"] != (process_identity(os.getpid()) or {})["start_ticks"]
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert process_identity(process.pid) is None, "a zombie"
    assert process_identity(process.pid) is None


# What reaches the command


def test_prefect_and_submitit_stay_outside(job_of: JobOf, run: Run) -> None:
    job = job_of("sh", "-c", "env -0 > environment", KEPT="1", LR="a b\n'c'")
    assert run(job, PREFECT_API_URL="http://x", SUBMITIT_EXECUTOR="local", OUTER="2") == 0
    raw = (job.output / "environment").read_text().split("\0")
    seen = dict(line.split("=", 1) for line in raw if line)
    assert not [name for name in seen if name.startswith(("PREFECT_", "SUBMITIT_"))]
    assert (seen["KEPT"], seen["LR"], seen["OUTER"]) == ("1", "a b\n'c'", "2")
    assert seen[payload.COOKIE] == job.ref.key


def test_hostile_arguments_arrive_byte_for_byte(job_of: JobOf, run: Run) -> None:
    texts = ["", " ", "a b", "'", '"', "$(touch x)", "`id`", "${oc.env:HOME}", "{0}", "%s", "a\nb"]
    texts += ["a|touch x", "; exit 9", "\\", "*", "~", "--", "-rf", "ö", "\t", "\r"]
    job = job_of("sh", "-c", 'printf "%s\\0" "$@" > arguments', "sh", *texts)
    assert run(job) == 0
    arrived = (job.output / "arguments").read_bytes().split(b"\0")
    assert arrived == [os.fsencode(text) for text in texts] + [b""]
    assert {path.name for path in job.output.iterdir()} == {"arguments", payload.OWNER}


def test_bytes_that_are_no_utf_8_arrive_too(job_of: JobOf, run: Run) -> None:
    job = job_of("sh", "-c", 'printf "%s" "$1" > argument', "sh", "BYTE")
    job.prepare()
    spec = job.directory / "spec.json"
    spec.write_text(spec.read_text().replace("BYTE", "\\udcff"))
    assert run(job) == 0
    assert (job.output / "argument").read_bytes() == b"\xff"


def test_the_log_grows_as_it_happens_behind_what_was_there(
    job_of: JobOf, start: Start, wait_for: WaitFor
) -> None:
    job = job_of("sh", "-c", "echo out; echo err >&2; read line < go; echo $line")
    job.prepare()
    os.mkfifo(job.output / "go")
    (job.directory / "job.log").write_text("before\n")
    with start(job) as process:
        wait_for(lambda: b"err" in job.log, "the log's first lines")
        assert process.poll() is None
        assert job.log == b"before\nout\nerr\n"
        (job.output / "go").write_text("on\n")
    assert job.log == b"before\nout\nerr\non\n"
    assert process.returncode == 0


# The claim


def test_a_claim_is_on_disk_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    link, fsync = os.link, os.fsync

    def synced(descriptor: int) -> None:
        steps.append("sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        fsync(descriptor)

    def linked(source: Path, name: Path) -> None:
        steps.append("link")
        link(source, name)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "link", linked)
    assert payload.claim(tmp_path, "41")
    assert steps == ["sync file", "link", "sync folder"]
    assert [path.name for path in tmp_path.iterdir()] == ["claim"]


def test_an_empty_claim_is_none_and_one_job_alone_takes_it(tmp_path: Path) -> None:
    (tmp_path / "claim").touch()
    os.utime(tmp_path / "claim", (1, 1))
    assert payload.claimed_by(tmp_path) is None
    took = [job_id for job_id in ("41", "42", "43") if payload.claim(tmp_path, job_id)]
    assert took == ["41"]
    assert payload.claimed_by(tmp_path) == "41"
    assert payload.claim(tmp_path, "41")  # requeued


def test_a_filesystem_that_cannot_sync_a_directory_still_has_claims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def only_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    assert payload.claim(tmp_path, "41")
    assert not payload.claim(tmp_path, "42")


def test_what_is_left_of_an_attempt_is_not_another_sessions_of_the_same_key(
    tmp_path: Path, no_survivors: None
) -> None:
    (tmp_path / "ours").mkdir()
    mine, theirs, old = (
        subprocess.Popen(["sleep", "60"], env={**os.environ, payload.COOKIE: "s1-j-a1", **more})
        for more in (
            {payload.ATTEMPT: str((tmp_path / "ours").resolve())},
            {payload.ATTEMPT: str(tmp_path / "theirs")},
            {},  # as of a payload that said less
        )
    )
    payload.end_leftovers("s1-j-a1", tmp_path / "ours")
    assert (mine.wait(20), old.wait(20)) == (-9, -9)
    assert theirs.poll() is None
    theirs.kill()
    theirs.wait()


def test_without_hard_links_one_job_alone_has_the_claim_and_one_that_is_being_written_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Path) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "link", refused)
    assert [payload.claim(tmp_path, job_id) for job_id in ("41", "42", "41")] == [True, False, True]

    (tmp_path / "claim").write_text("")
    writer = threading.Timer(0.3, lambda: (tmp_path / "claim").write_text("43"))
    writer.start()
    assert not payload.claim(tmp_path, "44")
    writer.join()
    assert payload.claimed_by(tmp_path) == "43"
    assert [path.name for path in tmp_path.iterdir()] == ["claim"]
