"""Jobs as processes on this machine, through submitit's local executor.

submitit starts a controller for each job, which applies the time limit. What its LocalJob cannot
do is done here: a job is found, judged and cancelled by a process that did not start it.
The state of a job comes from the files that the payload leaves in the attempt's directory.
"""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import submitit
from submitit.local import local as submitit_local

from autoexp import payload, proxies
from autoexp.errors import SchedulerError, SchedulerUnavailable, SubmissionRefused
from autoexp.jobs.record import Attempt
from autoexp.jobs.spec import JobSpec
from autoexp.resources.machines import LocalMachine
from autoexp.schedulers import launch
from autoexp.schedulers.base import (
    WITHDRAWN,
    AttemptRef,
    JobStatus,
    PayloadSpec,
    SubmitOptions,
    is_locked,
    read_claim,
)
from autoexp.schedulers.exit_files import ExitFile, read_exit_file, read_start_file
from autoexp.storage import atomic, processes

_START_PATIENCE_S = 2.0


class DetachedExecutor(submitit.LocalExecutor):
    """submitit's local executor, with controllers that outlive this process."""

    def __init__(self, directory: Path, lock: int) -> None:
        super().__init__(directory)
        self._lock = lock

    def _submit_command(self, command: str) -> submitit.LocalJob[Any]:
        """Start submitit's controller in a session of its own, holding the attempt's lock.

        submitit's own start leaves the controller in the terminal's process group, where Ctrl-C
        kills it, and sends its output to the monitor's terminal.
        """
        gpus = ",".join(str(gpu) for gpu in range(self.parameters.get("gpus_per_node", 0)))
        environment = {
            **proxies.environment(),
            "SUBMITIT_LOCAL_NTASKS": "1",
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_TIMEOUT_S": str(int(60 * self.parameters["timeout_min"])),
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": str(self.parameters["signal_delay_s"]),
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_LOCAL_WITH_SHELL": "",
            "SUBMITIT_STDERR_TO_STDOUT": "1",
            "SUBMITIT_EXECUTOR": "local",
        }
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = gpus
        flags = os.O_WRONLY | os.O_APPEND
        with os.fdopen(payload.open_own(self.folder / "controller.log", flags), "ab") as log:
            controller = subprocess.Popen(
                [sys.executable, "-m", "submitit.local._local", str(self.folder)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[self._lock],
                # For submitit's own logs; the payload restores the user's umask for the command.
                umask=0o077 & ~self.folder.stat().st_mode | 0o022,
            )
        return submitit_local.LocalJob(self.folder, str(controller.pid), process=controller)


def _umask() -> int:
    """This process's umask, which can be read only by setting it, or from /proc."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o077


class LocalScheduler:
    """Attempts on this machine; a job id is the pid of submitit's controller."""

    def __init__(self) -> None:
        self._children: list[submitit.LocalJob[Any]] = []

    def payload_spec(self, spec: JobSpec, attempt: Attempt) -> PayloadSpec:
        if not isinstance(spec.machine, LocalMachine):
            raise SubmissionRefused("a job for SLURM cannot join a session on this machine")
        return launch.payload_spec(spec.machine, spec, attempt.key)._replace(umask=_umask())

    def submit(self, ref: AttemptRef, options: SubmitOptions, lock: int) -> str:
        executor = DetachedExecutor(ref.directory, lock)
        minutes = options.time_limit_min
        executor.update_parameters(
            # submitit counts the limit in polls; a year stands for none.
            timeout_min=minutes if minutes is not None else 60 * 24 * 366,
            signal_delay_s=options.machine.warn_before_limit_s,
            gpus_per_node=options.machine.gpus_per_node,
        )
        script = ref.directory / "payload.py"
        job = executor._submit_command(shlex.join([sys.executable, str(script)]))
        self._children.append(job)
        return str(job.job_id)

    def longest_array(self) -> int:
        return 1

    def find(self, ref: AttemptRef, *, in_flight: bool) -> str | None:
        """The id in the claim: a controller holds the lock for as long as it lives."""
        del in_flight
        return read_claim(ref.directory)

    def query(self, refs: Sequence[AttemptRef]) -> dict[str, JobStatus]:
        self._reap()
        return {ref.key: _sight(ref) for ref in refs}

    def cancel(self, refs: Sequence[AttemptRef]) -> dict[str, str]:
        """Signal each job to end; its payload kills what has not ended after the grace time."""
        return {ref.key: _cancel(ref) for ref in refs}

    def tell(self, ref: AttemptRef, name: str) -> str:
        """Signal the payload, which tells the trainer in its own way."""
        started = read_start_file(ref.directory)
        try:
            pid = None if started is None else processes.pid_of(started)
        except processes.OutOfSight as error:
            assert started is not None
            raise SchedulerError(f"runs on {started['host']}: ask from there") from error
        if pid is None:
            raise SchedulerError(f"{ref.key} does not run")
        _kill(pid, getattr(signal, f"SIG{name}"))
        return f"signalled process {pid} ({name})"

    def avoid(self, refs: Sequence[AttemptRef], nodes: Sequence[str]) -> None:
        """Do nothing: there is only one node."""

    def _reap(self) -> None:
        # Controllers that this process started stay zombies until they are waited for.
        self._children = [job for job in self._children if job.get_info()["jobState"] == "RUNNING"]


def _sight(ref: AttemptRef) -> JobStatus:
    """The state of one attempt, from its files and its process."""
    directory = ref.directory
    # Each is checked before the files that it leaves: a job that starts or ends in between two
    # checks is then seen one look later, and never as failed.
    starting = is_locked(directory)
    alive = _payload_lives(directory)
    ended = read_exit_file(directory)
    if ended is not None:
        return _ended(directory, ended)
    started = read_start_file(directory)
    if started is None:
        if starting:
            return JobStatus("PENDING")
        if payload.processes_with_cookie(ref.key, ref.directory):
            return JobStatus("RUNNING", f"{directory} was removed: its end is unknown")
        if (directory / "cancelled").exists():
            return JobStatus("CANCELLED", ended_at=_now())
        log = directory / "controller.log"
        return JobStatus("FAILED", reason=f"never started; read {log}", ended_at=_now())
    since = _time(started["started_at"])
    if alive is not False:
        return JobStatus("RUNNING", nodes=started["host"], started_at=since)
    if _end_leftovers(ref):
        return JobStatus("RUNNING", nodes=started["host"], started_at=since)
    if (directory / "cancelled").exists():
        return JobStatus("CANCELLED", nodes=started["host"], started_at=since, ended_at=_now())
    state, reason = "FAILED", "its process was killed and left no exit code"
    if processes.rebooted_since(started):
        state, reason = "NODE_FAIL", f"{started['host']} was rebooted"
    return JobStatus(state, reason, nodes=started["host"], started_at=since, ended_at=_now())


def _payload_lives(directory: Path) -> bool | None:
    started = read_start_file(directory)
    if started is None:
        return None
    lives = processes.is_alive(started)
    # A payload has no heartbeat: a container that a reboot has ended is known by its boot id.
    return False if lives is None and processes.rebooted_since(started) else lives


def _ended(directory: Path, ended: ExitFile) -> JobStatus:
    started = read_start_file(directory) or {}
    status = ended.status(started.get("host"))
    if (directory / "cancelled").exists():
        return status._replace(state="CANCELLED", reason=ended.reason)
    return status


def _cancel(ref: AttemptRef) -> str:
    directory = ref.directory
    if (directory / "exit.json").exists():
        return "had ended already"
    atomic.make_directory(directory)  # somebody may have removed it
    atomic.write(directory / "cancelled", "")
    # Taking the claim ourselves keeps a job that has not started from ever starting.
    if payload.claim(directory, WITHDRAWN):
        left = _end_leftovers(ref)  # whose directory somebody removed
        return "killed its remaining processes" if left else "cancelled before it started"
    started = _await_start(directory)
    if started is None:
        raise SchedulerUnavailable(f"{ref.key} is starting right now; try again")
    try:
        pid = processes.pid_of(started)
    except processes.OutOfSight:
        return f"runs on {started['host']}: cancel it from there"
    if pid is not None:
        # The payload passes it on, and kills what has not ended after its grace time.
        _kill(pid, signal.SIGTERM)
        return "signalled to end (SIGTERM)"
    _end_leftovers(ref)
    return "killed its remaining processes"


def _end_leftovers(ref: AttemptRef) -> bool:
    """Kill what a killed payload left running, a daemon's container too; True if there was any."""
    left = payload.processes_with_cookie(ref.key, ref.directory)
    for pid in left:
        _kill(pid, signal.SIGKILL)
    with contextlib.suppress(OSError, ValueError):  # somebody may have removed it
        spec = json.loads(atomic.read(ref.directory / "spec.json"))
        return payload.stop_container(spec) or bool(left)
    return bool(left)


def _await_start(directory: Path) -> dict[str, Any] | None:
    """The start file of a job that has claimed its key, which follows within moments."""
    deadline = time.monotonic() + _START_PATIENCE_S
    while True:
        started = read_start_file(directory)
        if started is not None or time.monotonic() > deadline:
            return started
        time.sleep(0.02)


def _kill(pid: int, signum: int) -> None:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        pass


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _now() -> datetime:
    return datetime.now(UTC)
