"""The payload of a job: claims the attempt's key, runs the command, leaves an exit file.

A copy of this file lies in the attempt's directory and runs as a script, so code that changes on
disk while a job is queued does not change what it runs. Hence the standard library alone, and
nothing of Prefect: compute nodes reach no server.

    spec.json      what to run: key, command, environment, cwd, log, grace_s, warning_signal, …
    claim          who runs it: created exclusively, on disk before it counts; a second copy that
                   finds it exits 0
    started.json   the running process: host, pid, start ticks, boot id
    exit.json      how it ended, written atomically

The directory of an array holds `tasks.json` instead: which attempt each task's index stands for.

In the output directory `.owner` names the run that may write there: the attempt, and how often it
was requeued. A payload that finds another name ends its command: SLURM gives up on a node that it
cannot reach, and what lives on there must not write beside its successor.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from types import FrameType
from typing import Any

COOKIE = "AUTOEXP_KEY"
ATTEMPT = "AUTOEXP_ATTEMPT"
"""Names the attempt's directory: sessions of one id under several roots have the same keys."""
OWNER = ".owner"
# The first counts. One that a machine that crashed left empty stays so: then the next one does.
CLAIMS = ("claim", "claim.2", "claim.3")
TASKS = "tasks.json"
NODE_FILE, COPIES_FILE, INSIDE_FILE, CHECK_FILE = "node.py", "copies.py", "inside.py", "check.py"
CHECKPOINT = "{checkpoint}"
"""In the options of a resumed trainer: the path of its newest checkpoint."""
_OWNER_CHECK_S = 5.0
_LEFTOVERS_PATIENCE_S, _EXIT_FILE_PATIENCE_S = 5.0, 60.0
_STEP_PATIENCE_S, _CLAIM_PATIENCE_S, _REQUEUE = 30.0, 10.0, 144
_PR_SET_PDEATHSIG, _SIOCGIFADDR = 1, 0x8915
_SCRUBBED = ("PREFECT_", "SUBMITIT_")
_ANEW, _AT_END = os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND


def process_identity(pid: int) -> dict[str, Any] | None:
    """Host, pid, start time in clock ticks since boot, and boot id: unlike a pid, never reused.

    None when no such process exists, or when it is a zombie.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name stands in parentheses and may contain anything.
    fields = stat[stat.rindex(")") + 2 :].split()
    if fields[0] in "ZX":
        return None
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    host = socket.gethostname()
    return {"host": host, "pid": pid, "start_ticks": int(fields[19]), "boot_id": boot_id}


def own_identity() -> dict[str, Any]:
    """This process, also for processes of other pid namespaces."""
    return {
        **(process_identity(os.getpid()) or {}),
        "pid_namespace": pid_namespace(),
        "host_id": host_id(),
    }


def pid_namespace() -> str:
    """The pid namespace: a container may have the host's name, and its own pids."""
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    except OSError:
        return ""


def host_id() -> str:
    """An id that distinguishes machines of one name, and survives a reboot; perhaps empty."""
    with contextlib.suppress(OSError):
        return Path("/etc/machine-id").read_text().strip()
    return ""


def processes_with_cookie(key: str, directory: Path | None = None) -> list[int]:
    """Processes of this user, except this one, with the attempt's key in their environment.

    Only those of the attempt in `directory`, where it is given.
    """
    cookie, attempt = f"{COOKIE}={key}".encode(), f"{ATTEMPT}=".encode()
    own = attempt + os.fsencode(directory.resolve()) if directory else b""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:  # another user's process, or one that ended meanwhile
            continue
        variables = environment.split(b"\0")
        named = [variable for variable in variables if variable.startswith(attempt)]
        if cookie in variables and (directory is None or named in ([], [own])):
            found.append(int(entry.name))
    return found


def scheduler_job_id() -> str:
    """The scheduler's id of this job; array tasks as `123_4`."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    local = os.environ.get("SUBMITIT_LOCAL_JOB_ID", f"pid{os.getpid()}")
    return os.environ.get("SLURM_JOB_ID", local)


def claim(directory: Path, job_id: str) -> bool:
    """Take the attempt's key for `job_id`, for good; False when another job holds it."""
    temporary = directory / f".claim.{socket.gethostname()}.{os.getpid()}"
    with os.fdopen(open_own(temporary, _ANEW), "w") as file:
        file.write(job_id)
        file.flush()
        os.fsync(file.fileno())
    try:
        for name in CLAIMS:
            try:
                create(temporary, directory / name)
            except FileExistsError:
                if holder := _content(directory / name):
                    # A requeued job comes again under its own id.
                    return holder == job_id
            else:
                sync_directory(directory)
                return True
        return False
    finally:
        temporary.unlink()


def create(temporary: Path, name: Path) -> None:
    """Rename a file to a new name; raises FileExistsError where the name exists."""
    try:
        # link(2) creates the name with its content at once, and refuses an existing one.
        os.link(temporary, name)
    except FileExistsError:
        raise
    except OSError:  # a filesystem without hard links
        with os.fdopen(open_own(name, os.O_WRONLY | os.O_EXCL), "w") as file:
            file.write(temporary.read_text())
            file.flush()
            os.fsync(file.fileno())


def _content(path: Path) -> str:
    """Content of a claim; without hard links it is empty for a moment, and is waited for."""
    deadline = time.monotonic() + _CLAIM_PATIENCE_S
    while True:
        content = path.read_text()
        age = time.time() - path.stat().st_mtime
        if content or age > _CLAIM_PATIENCE_S or time.monotonic() > deadline:
            return content
        time.sleep(0.1)


def claimed_by(directory: Path) -> str | None:
    """The holder of the attempt's key, or None. An empty claim is none: its content was lost."""
    for name in CLAIMS:
        try:
            holder = (directory / name).read_text()
        except FileNotFoundError:
            return None
        if holder:
            return holder
    return None


def sync_directory(directory: Path) -> None:
    """Make a new name in a directory survive a crash; some filesystems have no such call."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def open_own(path: Path, flags: int, *, executable: bool = False) -> int:
    """Open a file, created where missing, readable for those who can read its directory.

    Whatever the umask is, and writable only for its owner.
    """
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if flags & os.O_EXCL:
            raise
        return os.open(path, flags)
    mode = os.stat(path.parent).st_mode & 0o044  # noqa: PTH116
    mode |= 0o700 | mode >> 2 if executable else 0o600
    if os.fstat(descriptor).st_mode & 0o777 != mode:
        with contextlib.suppress(OSError):  # a filesystem without modes, or with its own
            os.fchmod(descriptor, mode)
    return descriptor


def write_json(path: Path, value: dict[str, Any], patience_s: float = 0.0) -> None:
    """Write atomically: the monitor reads these files at any moment. A full disk is waited for."""
    deadline = time.monotonic() + patience_s
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    while True:
        try:
            with os.fdopen(open_own(temporary, _ANEW), "w") as file:
                json.dump(value, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            return
        except OSError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(1.0)


def own_name(spec: dict[str, Any]) -> str:
    """Name of this run in the owner file."""
    return f"{spec['key']}#{os.environ.get('SLURM_RESTART_COUNT', '0')}"


def owner(spec: dict[str, Any]) -> str:
    """The run that may write in the output directory."""
    try:
        return (Path(spec["cwd"]) / OWNER).read_text()
    except OSError:  # a filesystem that is away for a moment changes no owner
        return own_name(spec)


def is_owned_elsewhere(spec: dict[str, Any], directory: Path) -> bool:
    """True if an earlier run may still be writing on another machine or in a container."""
    before = owner(spec)
    earlier = directory.parent / before.partition("#")[0]
    here = before == own_name(spec)
    if here or (earlier / "exit.json").exists() or not (earlier / "started.json").exists():
        return False
    started = json.loads((earlier / "started.json").read_text())
    # On this machine, and outside of containers, its death can be checked.
    mine = own_identity()
    places = ("host", "host_id", "boot_id", "pid_namespace")
    away = any(started.get(name, mine[name]) != mine[name] for name in places)
    return away or process_identity(started["pid"]) is not None


def command_of(spec: dict[str, Any]) -> list[str]:
    """The command; for trainers that have to be told, another one where there is a checkpoint."""
    resumed = spec.get("resumed")
    if resumed and Path(resumed["folder"]).is_dir():
        matches = (re.fullmatch(resumed["name"], p.name) for p in Path(resumed["folder"]).iterdir())
        found = {int(match["iteration"]): match[0] for match in matches if match}
        if found:
            newest = str(Path(resumed["folder"]) / found[max(found)])
            return [word.replace(CHECKPOINT, newest) for word in resumed["command"]]
    return list(spec["command"])


def take_over(spec: dict[str, Any], *, wait: bool) -> None:
    """Become the owner of the output directory; `wait` until an earlier one must have noticed."""
    path = Path(spec["cwd"]) / OWNER
    temporary = path.with_name(f"{OWNER}.{os.getpid()}")
    with os.fdopen(open_own(temporary, _ANEW), "w") as file:
        file.write(own_name(spec))
    temporary.replace(path)
    if wait:
        time.sleep(2 * _OWNER_CHECK_S)


def local_address(rule: dict[str, Any]) -> str:
    """This node's name or address by the rule in `slurm.rendezvous`; raises OSError without one."""
    host = socket.gethostname()
    if interface := rule.get("interface"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
            request = struct.pack("256s", interface.encode()[:15])
            return socket.inet_ntoa(fcntl.ioctl(asked.fileno(), _SIOCGIFADDR, request)[20:24])
    if suffix := rule.get("suffix"):
        host = os.environ.get("SLURMD_NODENAME", host.partition(".")[0]) + suffix
    return socket.gethostbyname(host) if rule.get("address") else host


def rendezvous(spec: dict[str, Any]) -> dict[str, str]:
    """Rendezvous of a distributed job's processes: this host, which is the job's first node."""
    if "SLURM_JOB_ID" not in os.environ:
        # Jobs of one machine run side by side: each has a port of its own.
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    port = str(20000 + zlib.crc32(spec["key"].encode()) % 20000)
    host = local_address(spec.get("rendezvous", {}))
    return {"MASTER_ADDR": host, "MASTER_PORT": port, "PET_RDZV_ENDPOINT": f"{host}:{port}"}


class Supervisor:
    """Runs one command in its own session and passes signals on to it."""

    def __init__(self, spec: dict[str, Any], directory: Path | None = None) -> None:
        self._spec = spec
        self._directory = directory
        self._child: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []
        self.notes = dict.fromkeys(("warned", "terminated", "limit", "superseded"), False)

    def run(self, command: list[str]) -> int:
        """Run a command to its end; returns its exit code, negative for a signal."""
        for name in ("TERM", "USR1", "USR2", "INT", "HUP"):
            signal.signal(signal.Signals[f"SIG{name}"], self._on_signal)
        signal.signal(signal.SIGALRM, lambda *_: self._send(signal.SIGKILL))
        with os.fdopen(open_own(Path(self._spec["log"]), _AT_END), "ab", buffering=0) as log:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._spec["cwd"],
                env=self._environment(),
                start_new_session=True,
                preexec_fn=_die_with_parent,
                # Our files are made for the owner alone; the trainer's files get the user's umask.
                umask=self._spec.get("umask", -1),
            )
        for signum in self._early:
            self._send(signum)
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._child.wait(timeout=_OWNER_CHECK_S)
            if owner(self._spec) != own_name(self._spec):
                self.notes["superseded"] = True
                self._send(signal.SIGKILL)

    def _environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(_SCRUBBED)}
        cookie = {COOKIE: self._spec["key"]} | (
            {ATTEMPT: str(self._directory)} if self._directory else {}
        )
        own = {**kept, **rendezvous(self._spec), **self._spec["environment"], **cookie}
        if self._directory is None or self._spec.get("inside", {"each": True})["each"]:
            return own  # behind a launcher each process does the same: it alone knows its rank
        return dict(_beside(self._directory, INSIDE_FILE).for_runtime(self._spec, own))

    def _on_signal(self, signum: int, _frame: FrameType | None) -> None:
        if signum == signal.SIGINT:
            # submitit's local controller: the time limit has passed, SIGKILL follows in a second.
            self.notes["limit"] = True
            self._send(signal.SIGKILL)
        elif signum == signal.SIGTERM:
            if not self.notes["terminated"]:
                signal.setitimer(signal.ITIMER_REAL, self._spec["grace_s"])
            self.notes["terminated"] = True
            self._send(signal.SIGTERM)
        else:
            self.notes["warned"] |= signum != signal.SIGHUP
            self._tell("save" if signum == signal.SIGHUP else "warning")

    def _tell(self, what: str) -> None:
        """Tell the trainer of its limit, or to save and go on, by a signal or a file."""
        name, steps = self._spec.get(f"{what}_signal", ""), bool(self._spec.get("signal_steps"))
        if file := self._spec.get(f"{what}_file"):
            with contextlib.suppress(OSError):
                Path(file).parent.mkdir(parents=True, exist_ok=True)
                Path(file).touch()
        known = self._child is not None and self._directory is not None and not file and name
        told = known and _warn_trainers(self._directory or Path(), name, steps=steps)
        told = told or file or not name
        if not (told or (steps and _signal_steps(name))):
            self._send(getattr(signal, name))

    def _send(self, signum: int) -> None:
        if self._child is None:
            # The command is being started, and may run already: it is signalled in a moment.
            self._early.append(signum)
            return
        # A container's runtime passes it on: to its group as well, it would come twice.
        alone = self._spec.get("signal_alone") and signum != signal.SIGKILL
        with contextlib.suppress(ProcessLookupError):
            (os.kill if alone else os.killpg)(self._child.pid, signum)


def end_leftovers(key: str, directory: Path) -> None:
    """Kill processes that the command left: orphaned workers would go on writing checkpoints."""
    deadline = time.monotonic() + _LEFTOVERS_PATIENCE_S
    # A kill takes effect a moment later, and a dying process may have forked.
    while (left := processes_with_cookie(key, directory)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def stop_container(spec: dict[str, Any]) -> bool:
    """End the container that a killed client has left with its daemon; True if there was one."""
    return "stop" in spec and _succeeds(spec["stop"], quiet=True)


def _warn_trainers(directory: Path, name: str, *, steps: bool) -> bool:
    """Have `node.py` signal the trainers, on every node of the job; True if it found some."""
    nodes = os.environ.get("SLURM_JOB_NUM_NODES", "1")
    step = ["srun", "--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    step += ["--cpus-per-task=1", "--cpu-bind=none", "--input=none"]
    warn = [sys.executable, str(directory / NODE_FILE), "warn", name]
    return _succeeds([*step, *warn] if steps else warn)


def _signal_steps(name: str) -> bool:
    """Signal all processes of this job's steps; True if that worked.

    srun itself ends the whole step on a SIGTERM. scancel reaches the tasks, and not the batch
    process, which we are.
    """
    return _succeeds(["scancel", f"--signal={name[3:]}", scheduler_job_id()])


def _succeeds(command: list[str], *, quiet: bool = False) -> bool:
    output = subprocess.DEVNULL if quiet else None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        ended = subprocess.run(command, timeout=_STEP_PATIENCE_S, stdout=output, stderr=output)
        return ended.returncode == 0
    return False


def _copies(spec: dict[str, Any], directory: Path) -> contextlib.AbstractContextManager[None]:
    """Keeps copies of a checkpoint file that is written over, where the trainer has one."""
    if "copies" not in spec:
        return contextlib.nullcontext()
    return _beside(directory, COPIES_FILE).Copies(spec["copies"])  # type: ignore[no-any-return]


def _beside(directory: Path, file: str) -> Any:
    sys.path.insert(0, str(directory))
    return importlib.import_module(Path(file).stem)


def _die_with_parent() -> None:
    # A supervisor killed with -9 leaves no trainer behind without supervision.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(directory: Path) -> int:
    """Run the attempt that lies in `directory`; returns the exit code for the scheduler."""
    if (directory / TASKS).exists():
        tasks = json.loads((directory / TASKS).read_text())
        directory = directory.parent / tasks[os.environ["SLURM_ARRAY_TASK_ID"]]
    spec = json.loads((directory / "spec.json").read_text())
    job_id = scheduler_job_id()
    if not claim(directory, job_id):
        holder = claimed_by(directory)
        print(f"{spec['key']} is run by job {holder}; job {job_id} has nothing to do", flush=True)
        return 0
    wait = is_owned_elsewhere(spec, directory)
    started = time.time()
    this = {**own_identity(), "job_id": job_id, "started_at": started}
    write_json(directory / "started.json", this)
    (directory / "exit.json").unlink(missing_ok=True)
    supervisor, reason, sick = Supervisor(spec, directory), None, {}
    try:
        take_over(spec, wait=wait)
        for file in filter(None, map(spec.get, ("warning_file", "save_file"))):  # an earlier one's
            Path(file).unlink(missing_ok=True)
        if "check" in spec:
            sick = _beside(directory, CHECK_FILE).sick_nodes(spec, directory, supervisor.run)
        code = int(bool(sick) or supervisor.notes["terminated"])
        code = supervisor.run(spec["before"]) if code == 0 and spec.get("before") else code
        if code == 0:
            with _copies(spec, directory):
                code = supervisor.run(command_of(spec))
        else:
            reason = "the set-up of the nodes failed (`node_setup`)" if not sick else "sick nodes"
        stop_container(spec)
        end_leftovers(spec["key"], directory)
    except OSError as error:
        code, reason = 127, f"could not start: {error}"
        print(reason, file=sys.stderr, flush=True)
    ended = {
        "job_id": job_id,
        "exit_code": code if code >= 0 else None,
        "signal": -code if code < 0 else None,
        "reason": reason,
        "started_at": started,
        "ended_at": time.time(),
        "sick_nodes": sick,
        **supervisor.notes,
    }
    with contextlib.suppress(OSError):  # without it the scheduler's word has to do
        write_json(directory / "exit.json", ended, _EXIT_FILE_PATIENCE_S)
    # submitit's local controller starts a command again that exits with its code for a requeue.
    return 1 if code == _REQUEUE else code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent))
