"""What runs inside a job: claims the attempt's key, runs the command, leaves an exit file.

A copy of this file lies in the attempt's directory and runs as a script, so code that changes on
disk while a job is queued does not change what it runs. Hence the standard library alone, and
nothing of Prefect: compute nodes reach no server.

    spec.json      what to run: key, command, environment, cwd, log, grace_s, warning_signal
    claim          who runs it: created exclusively; a second copy that finds it exits 0
    started.json   the running process: host, pid, start ticks, boot id
    exit.json      how it ended, written atomically

The directory of an array holds `tasks.json` instead: which attempt each task's index stands for.

In the job's output directory the file `.owner` names the attempt that may write there. A payload
that finds another name in it ends its command: SLURM gives up on a node that it cannot reach, and
a job whose processes live on there must not write beside its successor.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
import zlib
from pathlib import Path
from types import FrameType
from typing import Any

COOKIE = "AUTOEXP_KEY"
OWNER = ".owner"
TASKS = "tasks.json"
_OWNER_CHECK_S = 5.0
_REQUEUE = 144
_PR_SET_PDEATHSIG = 1
_SCRUBBED = ("PREFECT_", "SUBMITIT_")


def process_identity(pid: int) -> dict[str, Any] | None:
    """Host, pid, start time in clock ticks since boot, and boot id: unlike a pid, never reused.

    None when no such process exists, or when it is a zombie.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name stands in parentheses and may contain anything, spaces too.
    fields = stat[stat.rindex(")") + 2 :].split()
    if fields[0] in "ZX":
        return None
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    host = socket.gethostname()
    return {"host": host, "pid": pid, "start_ticks": int(fields[19]), "boot_id": boot_id}


def processes_with_cookie(key: str) -> list[int]:
    """Processes of this user that carry the attempt's key in their environment, but this one."""
    cookie = f"{COOKIE}={key}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:  # another user's process, or one that ended meanwhile
            continue
        if cookie in environment.split(b"\0"):
            found.append(int(entry.name))
    return found


def scheduler_job_id() -> str:
    """The id under which the scheduler knows this job; array tasks as `123_4`."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array:
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    local = os.environ.get("SUBMITIT_LOCAL_JOB_ID", f"pid{os.getpid()}")
    return os.environ.get("SLURM_JOB_ID", local)


def claim(directory: Path, job_id: str) -> bool:
    """Take the attempt's key for `job_id`; False when another job holds it."""
    holder = directory / "claim"
    temporary = directory / f".claim.{os.getpid()}"
    temporary.write_text(job_id)
    try:
        # link(2) creates the name with its content at once, and refuses an existing one.
        os.link(temporary, holder)
    except FileExistsError:
        # A requeued job comes again under its own id.
        return holder.read_text() == job_id
    finally:
        temporary.unlink()
    return True


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write atomically: the monitor reads these files at any moment."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def owner(spec: dict[str, Any]) -> str:
    """The key of the attempt that may write in the output directory."""
    try:
        return (Path(spec["cwd"]) / OWNER).read_text()
    except OSError:  # a filesystem that is away for a moment changes no owner
        return str(spec["key"])


def take_over(spec: dict[str, Any], directory: Path) -> None:
    """Become the owner of the output directory; wait until an earlier one must have noticed."""
    before = owner(spec)
    path = Path(spec["cwd"]) / OWNER
    temporary = path.with_name(f"{OWNER}.{os.getpid()}")
    temporary.write_text(spec["key"])
    temporary.replace(path)
    if before != spec["key"] and _may_write(directory.parent / before):
        time.sleep(2 * _OWNER_CHECK_S)


def _may_write(earlier: Path) -> bool:
    """Whether an earlier attempt may still be running somewhere out of sight."""
    if (earlier / "exit.json").exists() or not (earlier / "started.json").exists():
        return False
    started = json.loads((earlier / "started.json").read_text())
    # On this host one can see that it is dead.
    return (
        started.get("host") != socket.gethostname() or process_identity(started["pid"]) is not None
    )


def rendezvous(key: str) -> dict[str, str]:
    """Where the processes of a distributed job meet: this host, which is the job's first node."""
    if "SLURM_JOB_ID" not in os.environ:
        return {}
    port = str(20000 + zlib.crc32(key.encode()) % 20000)
    host = socket.gethostname()
    return {"MASTER_ADDR": host, "MASTER_PORT": port, "PET_RDZV_ENDPOINT": f"{host}:{port}"}


class Supervisor:
    """Runs one command in its own session and passes signals on to it."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._spec = spec
        self._child: subprocess.Popen[bytes] | None = None
        self.notes: dict[str, bool] = {
            "warned": False,
            "terminated": False,
            "limit": False,
            "superseded": False,
        }

    def run(self) -> int:
        """Run the command to its end; returns its exit code, negative for a signal."""
        for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
            signal.signal(signum, self._on_signal)
        signal.signal(signal.SIGALRM, self._out_of_patience)
        with Path(self._spec["log"]).open("ab", buffering=0) as log:
            self._child = subprocess.Popen(
                self._spec["command"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._spec["cwd"],
                env=self._environment(),
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        code = self._wait()
        self._kill_leftovers()
        return code

    def _wait(self) -> int:
        assert self._child is not None
        while True:
            try:
                return self._child.wait(timeout=_OWNER_CHECK_S)
            except subprocess.TimeoutExpired:
                if owner(self._spec) != self._spec["key"]:
                    self.notes["superseded"] = True
                    self._send(signal.SIGKILL)

    def _environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(_SCRUBBED)}
        return {
            **kept,
            **rendezvous(self._spec["key"]),
            **self._spec["environment"],
            COOKIE: self._spec["key"],
        }

    def _on_signal(self, signum: int, _frame: FrameType | None) -> None:
        if signum == signal.SIGINT:
            # submitit's local controller: the time limit has passed, a SIGKILL is a second away.
            self.notes["limit"] = True
            self._send(signal.SIGKILL)
        elif signum == signal.SIGTERM:
            if not self.notes["terminated"]:
                signal.setitimer(signal.ITIMER_REAL, self._spec["grace_s"])
            self.notes["terminated"] = True
            self._send(signal.SIGTERM)
        else:
            # The warning before the time limit: told to the trainer in the way it understands.
            self.notes["warned"] = True
            name = self._spec["warning_signal"]
            if not (self._spec.get("signal_steps") and _signal_steps(name)):
                self._send(getattr(signal, name))

    def _out_of_patience(self, _signum: int, _frame: FrameType | None) -> None:
        self._send(signal.SIGKILL)

    def _send(self, signum: int) -> None:
        if self._child is None:
            raise SystemExit(128 + signum)
        try:
            os.killpg(self._child.pid, signum)
        except ProcessLookupError:
            pass

    def _kill_leftovers(self) -> None:
        """End what the command left behind: orphaned workers would go on writing checkpoints."""
        for pid in processes_with_cookie(self._spec["key"]):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def _signal_steps(name: str) -> bool:
    """Signal the tasks of this job's steps; whether that worked.

    srun itself ends the whole step on a SIGTERM. scancel reaches the tasks, and not the batch
    process, which we are.
    """
    command = ["scancel", f"--signal={name[3:]}", scheduler_job_id()]
    try:
        return subprocess.run(command, timeout=30).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def _die_with_parent() -> None:
    # A supervisor killed with -9 leaves no trainer behind that nobody watches.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(directory: Path) -> int:
    """Run the attempt that lies in `directory`; returns the exit code for the scheduler."""
    if (directory / TASKS).exists():
        tasks = json.loads((directory / TASKS).read_text())
        directory = directory.parent / tasks[os.environ["SLURM_ARRAY_TASK_ID"]]
    spec = json.loads((directory / "spec.json").read_text())
    job_id = scheduler_job_id()
    if not claim(directory, job_id):
        holder = (directory / "claim").read_text()
        print(f"{spec['key']} is run by job {holder}; job {job_id} has nothing to do", flush=True)
        return 0
    started = time.time()
    write_json(
        directory / "started.json",
        {**(process_identity(os.getpid()) or {}), "job_id": job_id, "started_at": started},
    )
    (directory / "exit.json").unlink(missing_ok=True)
    supervisor = Supervisor(spec)
    reason = None
    try:
        take_over(spec, directory)
        code = supervisor.run()
    except OSError as error:
        code, reason = 127, f"could not start: {error}"
        print(reason, file=sys.stderr, flush=True)
    write_json(
        directory / "exit.json",
        {
            "job_id": job_id,
            "exit_code": code if code >= 0 else None,
            "signal": -code if code < 0 else None,
            "reason": reason,
            "started_at": started,
            "ended_at": time.time(),
            **supervisor.notes,
        },
    )
    # submitit's local controller starts a command again that exits with its code for a requeue.
    return 1 if code == _REQUEUE else code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent))
