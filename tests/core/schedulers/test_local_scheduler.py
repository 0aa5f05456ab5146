"""Jobs on this machine, as real processes: submitted once, found again, judged by their files."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autoexp import payload, states
from autoexp.errors import SchedulerUnavailable, SessionHeld
from autoexp.resources.machines import LocalMachine
from autoexp.schedulers import local
from autoexp.schedulers.base import JobStatus, SubmitOptions, is_locked, submit_once
from autoexp.schedulers.local import LocalScheduler
from tests.killing import KilledAt
from tests.processes import Job, JobOf, WaitFor, is_alive

COUNT = "echo run >> runs"
PATIENT = "echo ready; while :; do sleep 0.02; done"


def submit(job: Job, *, fresh: bool = True, minutes: float | None = None, warn_s: int = 30) -> str:
    """Prepare and submit a job as a session does; returns its id."""
    job.prepare()
    machine = LocalMachine(warn_before_limit_s=warn_s)
    request = SubmitOptions(job.ref.name, job.attempt.log, machine, minutes)
    return submit_once(job.ref, request, LocalScheduler(), fresh=fresh)


def sight(job: Job) -> JobStatus:
    return LocalScheduler().query([job.ref])[job.ref.key]


def kill_payload(job: Job) -> None:
    os.kill(job.read("started.json")["pid"], signal.SIGKILL)


def edit(path: Path, **changes: Any) -> None:
    """Change a file of the payload's, atomically as the payload writes it."""
    payload.write_json(path, json.loads(path.read_text()) | changes)


Ended = Callable[[Job], JobStatus]
Running = Callable[..., Job]


@pytest.fixture
def ended(wait_for: WaitFor) -> Ended:
    """Wait until a job has ended; returns how."""

    def wait(job: Job) -> JobStatus:
        wait_for(lambda: sight(job).state not in ("PENDING", "RUNNING"), "the job's end")
        return sight(job)

    return wait


@pytest.fixture
def running(job_of: JobOf, wait_for: WaitFor) -> Running:
    """A job whose command has said that it is ready, and then waits for its end."""

    def start(command: str = PATIENT) -> Job:
        job = job_of("sh", "-c", command)
        submit(job)
        wait_for(lambda: b"ready" in job.log, "the job's start")
        return job

    return start


# From submission to end


def test_a_job_is_pending_then_running_then_completed(
    job_of: JobOf, wait_for: WaitFor, ended: Ended
) -> None:
    job = job_of("sh", "-c", "echo hello; read line < go")
    scheduler = LocalScheduler()
    job.prepare()
    os.mkfifo(job.output / "go")
    request = SubmitOptions(job.ref.name, job.attempt.log, LocalMachine())
    job_id = submit_once(job.ref, request, scheduler, fresh=True)
    seen: list[str] = []

    def look() -> bool:
        seen.append(scheduler.query([job.ref])[job.ref.key].state)
        return job.log == b"hello\n"

    wait_for(look, "the log")
    assert set(seen) <= {"PENDING", "RUNNING"}
    assert seen == sorted(seen)
    assert scheduler.query([job.ref])[job.ref.key].state == "RUNNING"
    assert (job.directory / "claim").read_text() == job_id
    (job.output / "go").write_text("on\n")
    status = ended(job)
    assert (status.state, status.exit_code, status.signal) == ("COMPLETED", 0, None)
    assert status.started_at is not None and status.ended_at is not None
    assert status.started_at <= status.ended_at


def test_a_job_that_exits_with_an_error_is_failed_with_its_code(
    job_of: JobOf, ended: Ended
) -> None:
    job = job_of("sh", "-c", f"{COUNT}; exit 3")
    submit(job)
    assert ended(job)[:3] == ("FAILED", None, 3)


def test_an_exit_code_that_means_requeue_to_submitit_runs_nothing_twice(
    job_of: JobOf, ended: Ended, wait_for: WaitFor
) -> None:
    job = job_of("sh", "-c", f"{COUNT}; exit 144")
    controller = int(submit(job))
    wait_for(lambda: not is_alive(controller), "the controller's end")
    assert ended(job)[:3] == ("FAILED", None, 144)
    assert (job.output / "runs").read_text() == "run\n"


def test_a_job_is_found_again_by_another_instance(running: Running, ended: Ended) -> None:
    job = running()
    again = LocalScheduler()
    assert again.find(job.ref, in_flight=False) == (job.directory / "claim").read_text()
    assert again.cancel([job.ref])[job.ref.key] == "signalled to end (SIGTERM)"
    assert ended(job).state == "CANCELLED"
    assert again.cancel([job.ref])[job.ref.key] == "had ended already"


@pytest.mark.parametrize("whole_group", [False, True])
def test_a_job_outlives_the_process_that_submitted_it(
    job_of: JobOf, wait_for: WaitFor, ended: Ended, whole_group: bool
) -> None:
    job = job_of("sh", "-c", "echo ready; read line < go; exit 0")
    job.prepare()
    os.mkfifo(job.output / "go")
    submitter = os.fork()
    if submitter == 0:
        os.setpgid(0, 0)
        submit(job)
        time.sleep(60)
        os._exit(1)
    wait_for(lambda: b"ready" in job.log, "the job's start")
    (os.killpg if whole_group else os.kill)(submitter, signal.SIGKILL)
    os.waitpid(submitter, 0)
    assert sight(job).state == "RUNNING"
    (job.output / "go").write_text("on\n")
    assert ended(job).state == "COMPLETED"


def test_the_time_limit_is_announced_and_then_kept(job_of: JobOf, ended: Ended) -> None:
    job = job_of("sh", "-c", f"trap 'echo saving' TERM; {PATIENT}")
    submit(job, minutes=2 / 60, warn_s=1)
    status = ended(job)
    assert (status.state, status.warned) == ("TIMEOUT", True)
    assert b"saving" in job.log


# Ends that leave no exit file


def test_a_killed_payload_is_failed_without_an_exit_code(running: Running, ended: Ended) -> None:
    job = running()
    kill_payload(job)
    status = ended(job)
    assert (status.state, status.exit_code) == ("FAILED", None)
    assert status.reason == "its process was killed and left no exit code"


def test_once_a_killed_job_counts_as_ended_none_of_its_processes_lives(
    running: Running, ended: Ended
) -> None:
    # As torchrun's workers: children of the command that nobody but the payload would end.
    job = running("sleep 60 & echo ready; wait")
    kill_payload(job)
    assert ended(job).state == "FAILED"
    assert [pid for pid in payload.processes_with_cookie(job.ref.key) if is_alive(pid)] == []


def test_a_job_whose_directory_is_removed_runs_for_as_long_as_its_processes_do(
    running: Running, ended: Ended
) -> None:
    job = running()
    trainer = payload.processes_with_cookie(job.ref.key)
    shutil.rmtree(job.directory)
    assert sight(job).state == "RUNNING"
    assert f"{job.directory} was removed" in (sight(job).reason or "")
    told = LocalScheduler().cancel([job.ref])
    assert told == {job.ref.key: "killed its remaining processes"}
    assert ended(job).state == "CANCELLED"
    assert not any(is_alive(pid) for pid in trainer)


def test_a_reboot_is_a_node_failure(running: Running, ended: Ended) -> None:
    job = running()
    kill_payload(job)
    edit(job.directory / "started.json", boot_id="before the reboot")
    status = ended(job)
    assert status.state == "NODE_FAIL"
    assert "was rebooted" in (status.reason or "")


def test_a_pid_that_another_process_has_by_now_is_not_the_job(
    running: Running, ended: Ended
) -> None:
    job = running()
    kill_payload(job)
    with subprocess.Popen("cat", stdin=subprocess.PIPE) as innocent:
        edit(job.directory / "started.json", pid=innocent.pid)
        assert ended(job).state == "FAILED"
        LocalScheduler().cancel([job.ref])
        assert is_alive(innocent.pid)


def test_a_job_on_another_host_is_not_judged_by_this_hosts_pids(running: Running) -> None:
    job = running()
    edit(job.directory / "started.json", host="elsewhere", pid=1)
    assert sight(job).state == "RUNNING"
    assert "cancel it from there" in LocalScheduler().cancel([job.ref])[job.ref.key]


def test_a_job_that_starts_and_ends_during_a_look_has_not_failed(
    job_of: JobOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of("true")
    job.prepare()

    def in_between(directory: Path) -> bool:
        # A monitor that was stopped here (Ctrl-Z, a slow filesystem) misses the whole job.
        subprocess.run(["python3", str(directory / "payload.py")], check=True)
        return False

    monkeypatch.setattr(local, "is_locked", in_between)
    assert sight(job).state in ("COMPLETED", "RUNNING", "PENDING")


# Cancelling before the start


def test_a_job_that_is_cancelled_before_it_starts_never_starts(job_of: JobOf) -> None:
    job = job_of("sh", "-c", COUNT)
    job.prepare()
    answer = LocalScheduler().cancel([job.ref])[job.ref.key]
    assert answer == "cancelled before it started"
    subprocess.run(["python3", str(job.directory / "payload.py")], check=True)
    assert not (job.output / "runs").exists()
    assert sight(job).state == "CANCELLED"


def test_a_job_that_has_claimed_and_not_yet_started_is_to_be_cancelled_again(
    job_of: JobOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of("sh", "-c", COUNT)
    job.prepare()
    assert payload.claim(job.directory, "41")
    monkeypatch.setattr(local, "_START_PATIENCE_S", 0.1)
    with pytest.raises(SchedulerUnavailable, match="starting right now"):
        LocalScheduler().cancel([job.ref])


# Exactly one submission


def test_an_attempt_that_runs_or_has_ended_is_adopted(running: Running, wait_for: WaitFor) -> None:
    job = running(f"{COUNT}; echo ready; sleep 0.2")
    for _ in range(2):
        assert submit(job, fresh=False) == (job.directory / "claim").read_text()
        wait_for(lambda: not is_locked(job.directory), "the controller's end")
    assert (job.output / "runs").read_text() == "run\n"


def test_a_submitter_that_dies_at_any_step_leaves_exactly_one_run(
    job_of: JobOf, killed_at: KilledAt, ended: Ended
) -> None:
    for n in itertools.count(1):
        job = job_of("sh", "-c", f"{COUNT}{n}", number=n)
        killed = killed_at(n, lambda job=job: submit(job))  # type: ignore[misc]
        job_id = submit(job, fresh=False)
        assert ended(job).state == "COMPLETED"
        assert (job.directory / "claim").read_text() == job_id
        assert (job.output / f"runs{n}").read_text() == "run\n"
        if not killed:
            break
    assert n > 4


def test_of_many_processes_that_submit_an_attempt_exactly_one_does(
    job_of: JobOf, ended: Ended
) -> None:
    job = job_of("sh", "-c", COUNT)
    job.prepare()
    children = []
    for number in range(3):
        child = os.fork()
        if child == 0:
            (job.output / f"id{number}").write_text(submit(job, fresh=False))
            os._exit(0)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0, 0, 0]
    assert ended(job).state == "COMPLETED"
    ids = {(job.output / f"id{number}").read_text() for number in range(3)}
    assert ids == {(job.directory / "claim").read_text()}
    assert (job.output / "runs").read_text() == "run\n"


def test_a_process_that_lost_the_session_meanwhile_submits_nothing_though_the_intent_is_fresh(
    job_of: JobOf, ended: Ended
) -> None:
    job = job_of("sh", "-c", COUNT)
    job.prepare()
    held = is_locked(job.directory)
    asked_under_lock: list[bool] = []

    def lost() -> None:
        asked_under_lock.append(is_locked(job.directory))
        raise SessionHeld("s1 is another monitor's")

    request = SubmitOptions(job.ref.name, job.attempt.log, LocalMachine(), still_ours=lost)
    for fresh in (True, False):
        with pytest.raises(SessionHeld):
            submit_once(job.ref, request, LocalScheduler(), fresh=fresh)
    assert (held, asked_under_lock) == (False, [True, True])
    assert not (job.directory / "controller.log").exists()

    assert submit(job)  # its successor
    assert ended(job).state == "COMPLETED"
    # What has been submitted is found, whoever asks.
    found = submit_once(job.ref, request, LocalScheduler(), fresh=False)
    assert found == payload.claimed_by(job.directory)
    assert (job.output / "runs").read_text() == "run\n"


@pytest.mark.parametrize(
    "command", ["exec sleep 60", "trap 'exit 1' TERM; while :; do sleep 0.02; done"]
)
def test_a_command_that_dies_of_the_warning_has_reached_its_time_limit(
    job_of: JobOf, ended: Ended, command: str
) -> None:
    job = job_of("sh", "-c", command)
    submit(job, minutes=3 / 60, warn_s=2)
    told = ended(job)
    assert (told.state, told.reason, told.warned) == ("TIMEOUT", states.ENDED_ON_WARNING, True)
