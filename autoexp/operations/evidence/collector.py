"""Writes down what an attempt's processes do on one node: stacks, GPUs, flight recorder, logs.

A copy runs on each node of a hung job, beside copies of the payload and `node.py`, so the standard
library alone: `collector.py KEY ATTEMPT OUTPUT SECONDS [SIGNAL]`. `NODE.json` in OUTPUT is written
again after each part, so that whatever hangs or kills this leaves the parts before it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_IS_COPY = __name__ == "__main__"
if _IS_COPY:
    sys.path.insert(0, str(Path(__file__).resolve().parent))
node: Any = importlib.import_module("node" if _IS_COPY else "autoexp.resources.node")
payload: Any = importlib.import_module("payload" if _IS_COPY else "autoexp.payload")

_PROCESSES = 64  # of a node
_AT_ONCE = 8
_SPY_S, _SMI_S, _SIGNAL_S, _PIPE_S = 15.0, 10.0, 3.0, 5.0
_LONGEST_STACK = 64 << 10
_LONGEST_TAIL = 16 << 10
_LARGEST_RECORD = 64 << 20
_QUIET_S = 0.3
_GROUPS = 64  # of a rank
_LONGEST_NAME = 80
_MOST = 2**63 - 1  # PyTorch counts in 64 bits
_DUMP = b"most recent call first"
_SMI = {
    "nvidia-smi": [
        ["nvidia-smi"],
        ["nvidia-smi", "--query-gpu=index,uuid,utilization.gpu,memory.used,memory.total,"
         "ecc.errors.uncorrected.volatile.total", "--format=csv"],
    ],
    "rocm-smi": [["rocm-smi"]],
}  # fmt: skip
# Variables of PyTorch's NCCL flight recorder, by their names until 2.8 and since.
_BUFFER = ("TORCH_NCCL_TRACE_BUFFER_SIZE", "TORCH_FR_BUFFER_SIZE")
_RECORDS = ("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", "TORCH_FR_DUMP_TEMP_FILE")
_PIPES = ("TORCH_NCCL_DEBUG_INFO_PIPE_FILE",)


class Node:
    """One node's part of the evidence."""

    def __init__(self, output: Path, name: str, seconds: float) -> None:
        self.name = name
        self.report: dict[str, Any] = {"node": name, "processes": [], "files": []}
        self._output = output
        self._deadline = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return max(0.0, self._deadline - time.monotonic())

    def write(self) -> None:
        """Write what is known by now."""
        payload.write_json(self._output / f"{self.name}.json", self.report)

    def file(self, name: str, content: bytes) -> None:
        """Write a file of this node beside the report."""
        path = self._output / f"{self.name}-{name}"
        with os.fdopen(payload.open_own(path, os.O_WRONLY | os.O_TRUNC), "wb") as file:
            file.write(content)
        self.report["files"].append(path.name)


def environ(pid: int) -> dict[str, str]:
    """Variables of a process."""
    text = node.read_proc(pid, "environ").decode(errors="replace")
    pairs = (word.partition("=") for word in text.split("\0") if "=" in word)
    return {name: value for name, _, value in pairs}


def about(pid: int, given: dict[str, str]) -> dict[str, Any]:
    """What the kernel says of a process: its state, and what each thread waits for."""
    ranks = [given.get(name) for name in ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")]
    worlds = [given.get(name) for name in ("WORLD_SIZE", "SLURM_NTASKS")]
    status = node.read_proc(pid, "status").decode(errors="replace")
    state = re.search(r"^State:\s*(\S)", status, re.MULTILINE)
    words = node.read_proc(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace")
    return {
        "pid": pid,
        "rank": next((int(text) for text in ranks if text and text.isdecimal()), None),
        "world": next((int(text) for text in worlds if text and text.isdecimal()), None),
        "command": words[:300].strip(),
        "state": state[1] if state else "",
        "wchan": node.read_proc(pid, "wchan").decode(errors="replace"),
        "how": "kernel",
        "stack": _kernel_stacks(pid),
    }


def _kernel_stacks(pid: int) -> str:
    """The kernel's stack of each thread, which only root may read, and what it waits in."""
    found = []
    with contextlib.suppress(OSError):
        for thread in sorted(Path(f"/proc/{pid}/task").iterdir(), key=lambda path: int(path.name)):
            parts = []
            for name in ("comm", "wchan", "syscall", "stack"):
                with contextlib.suppress(OSError):
                    parts.append(f"{name}: {(thread / name).read_text().strip()}")
            found.append(f"thread {thread.name}\n" + "\n".join(parts))
    return "\n".join(found)[:_LONGEST_STACK]


def spy_of(pid: int, given: dict[str, str]) -> str | None:
    """Path of the py-spy in the environment of a process, or in ours."""
    places = [str(Path(sys.executable).parent), *given.get("PATH", "").split(os.pathsep)]
    with contextlib.suppress(OSError):
        places.insert(0, str(Path(os.readlink(f"/proc/{pid}/exe")).parent))  # noqa: PTH115
    if given.get("VIRTUAL_ENV"):
        places.insert(0, str(Path(given["VIRTUAL_ENV"]) / "bin"))
    return shutil.which("py-spy", path=os.pathsep.join(places)) or shutil.which("py-spy")


def spied(pid: int, given: dict[str, str], seconds: float) -> str | None:
    """The stacks of a process by py-spy; None where there is none, or it may not look."""
    program = spy_of(pid, given)
    text = None if program is None else output_of([program, "dump", "--pid", str(pid)], seconds)
    return text[:_LONGEST_STACK] if text and "Thread" in text else None


def output_of(command: list[str], seconds: float) -> str | None:
    """Output of a command that ends well in time."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=max(0.1, seconds),
        )
        if ended.returncode == 0:
            return ended.stdout.decode(errors="replace")
    return None


def catches(pid: int, signum: int) -> bool:
    """True if a process has a handler for a signal: others it would kill."""
    status = node.read_proc(pid, "status").decode(errors="replace")
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)", status, re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (signum - 1) & 1)


def dumped(pid: int, signum: int, log: Path, seconds: float) -> str | None:
    """The stacks that faulthandler writes at a signal, to the process's stderr or the job's log."""
    with contextlib.suppress(OSError):
        stderr = Path(f"/proc/{pid}/fd/2").resolve()
        path = stderr if stderr.is_file() else log
        before = path.stat().st_size
        os.kill(pid, signum)
        deadline, seen, since = time.monotonic() + seconds, before, time.monotonic()
        text = b""
        while time.monotonic() < deadline:
            size = path.stat().st_size
            if size != seen:
                seen, since = size, time.monotonic()
                text = read(path, before, _LONGEST_STACK)
            elif _DUMP in text and time.monotonic() - since > _QUIET_S:
                break
            time.sleep(0.02)
        if _DUMP in text:
            return text.decode(errors="replace")
    return None


def read(path: Path, start: int, most: int) -> bytes:
    """Bytes of a file from a place on."""
    with path.open("rb") as file:
        file.seek(start)
        return file.read(most)


@contextlib.contextmanager
def turn(output: Path, seconds: float) -> Any:
    """Have the nodes signal one after the other: their trainers write into one log."""
    place, deadline, is_ours = output / ".turn", time.monotonic() + seconds, False
    while not is_ours and time.monotonic() < deadline:
        try:
            place.mkdir()
            is_ours = True
        except OSError:
            time.sleep(0.05)
    try:
        yield
    finally:
        if is_ours:
            place.rmdir()


def records_of(pid: int, given: dict[str, str], rank: int | None, seconds: float) -> list[Path]:
    """Files of the NCCL flight recorder of a process, which is asked for them where it listens.

    Those that are older than the process are of one that ran on this node before, and those of
    another user are another job's.
    """
    if rank is None or not any(given.get(name, "0") not in ("", "0") for name in _BUFFER):
        return []
    since, owner = started_at(pid), Path(f"/proc/{pid}").stat().st_uid
    prefixes = [given[name] for name in _RECORDS if given.get(name)] or ["/tmp/nccl_trace_rank_"]
    files = [Path(f"{prefix}{rank}") for prefix in prefixes]
    pipes = [Path(f"{given[name]}{rank}.pipe") for name in _PIPES if given.get(name)]
    began = time.time()
    for pipe in pipes:
        with contextlib.suppress(OSError):
            descriptor = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
            try:
                os.write(descriptor, b"1")
            finally:
                os.close(descriptor)
            deadline = time.monotonic() + min(seconds, _PIPE_S)
            while time.monotonic() < deadline and not any(_is_newer(f, began) for f in files):
                time.sleep(0.1)
            time.sleep(_QUIET_S)  # it is written in one go
    return [path for path in files if _is_newer(path, since) and _is_fit(path, owner)]


def _is_fit(path: Path, owner: int) -> bool:
    with contextlib.suppress(OSError):
        found = path.stat()
        is_small = found.st_size <= _LARGEST_RECORD
        return path.is_file() and is_small and found.st_uid == owner
    return False


def _is_newer(path: Path, than: float) -> bool:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime >= than - 1 and path.stat().st_size > 0
    return False


def started_at(pid: int) -> float:
    """When a process started, by this node's clock; 0 where it is not known."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        ticks = int(node.read_proc(pid, "stat").rpartition(b")")[2].split()[19])
        uptime_s = float(Path("/proc/uptime").read_text().split()[0])
        return time.time() - uptime_s + ticks / os.sysconf("SC_CLK_TCK")
    return 0.0


class PlainUnpickler(pickle.Unpickler):
    """Reads plain values, which is all that a record has: whatever names a class is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} in a record")


def collectives(record: bytes, rank: int | None) -> list[dict[str, Any]]:
    """What a rank has done in each process group, from its record: see `flight_recorder.py`.

    The format is that of PyTorch's `FlightRecorder` (2.x); what has another one tells nothing.
    """
    try:
        read = PlainUnpickler(io.BytesIO(record)).load()
        entries = read["entries"]
        # Of a full record the oldest entries are gone: what a rank did in a group that it does not
        # name is not known.
        is_whole = not entries or not entries[0].get("record_id")
        names = _groups_with(read, rank) if is_whole else []
        found = {str(name): _of_group(str(name)) for name in names}
        for entry in entries:
            if not entry["is_p2p"]:
                name, description = entry["process_group"]
                of_group = found.setdefault(name, _of_group(name))
                _note(of_group, description, entry)
    except Exception:
        return []
    return list(found.values())[:_GROUPS]


def _groups_with(record: dict[str, Any], rank: int | None) -> list[str]:
    config = record.get("pg_config") or {}
    return [name for name, group in config.items() if name and rank in json.loads(group["ranks"])]


def _of_group(name: str) -> dict[str, Any]:
    return {"group": _word(name), "last": 0, "waits": None}


def _word(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in str(text)[:_LONGEST_NAME])


def _note(of_group: dict[str, Any], description: str, entry: dict[str, Any]) -> None:
    number = max(0, min(int(entry["collective_seq_id"]), _MOST))
    of_group["description"] = _word(description)
    of_group["last"] = max(of_group["last"], number)
    is_over = entry["retired"] or entry["state"] == "completed"
    if not is_over and (of_group["waits"] is None or number < of_group["waits"]):
        operation = _word(entry["profiling_name"].rpartition(":")[2])
        of_group.update(waits=number, operation=operation, is_started=entry["state"] == "started")


def tails_of(pid: int, seen: set[str]) -> bytes:
    """The last lines of the files that a process writes its output to, each once."""
    found = b""
    for number in (1, 2):
        with contextlib.suppress(OSError):
            path = Path(f"/proc/{pid}/fd/{number}").resolve()
            if path.is_file() and str(path) not in seen:
                seen.add(str(path))
                start = max(0, path.stat().st_size - _LONGEST_TAIL)
                found += f"==> {path} <==\n".encode() + read(path, start, _LONGEST_TAIL) + b"\n"
    return found


def collect(
    key: str, attempt: Path, output: Path, seconds: float, signum: int | None = None
) -> None:
    """Collect this node's part, the quickest first."""
    here = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    mine = Node(output, re.sub(r"[^A-Za-z0-9._-]", "_", here), seconds)
    pids = node.trainers(key, attempt)[:_PROCESSES]
    given = {pid: environ(pid) for pid in pids}
    found = {pid: about(pid, given[pid]) for pid in pids}
    mine.report["processes"] = list(found.values())
    mine.write()

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        limit = min(_SPY_S, mine.left_s / 2)
        stacks = dict(pool.map(lambda pid: (pid, spied(pid, given[pid], limit)), pids))
    for pid, stack in stacks.items():
        if stack is not None:
            found[pid].update(how="py-spy", stack=stack)
    mine.write()

    mute = [pid for pid in pids if stacks[pid] is None]
    if signum is not None and mute:
        log = Path(json.loads((attempt / "spec.json").read_text())["log"])
        with turn(output, mine.left_s / 3):
            for pid in mute:
                if mine.left_s > _SIGNAL_S and catches(pid, signum):
                    stack = dumped(pid, signum, log, _SIGNAL_S)
                    if stack is not None:
                        found[pid].update(how="faulthandler", stack=stack)
        mine.write()

    for pid in pids:
        rank = found[pid]["rank"]
        for path in records_of(pid, given[pid], rank, mine.left_s / 3):
            with contextlib.suppress(OSError):
                record = path.read_bytes()
                mine.file(f"flight-recorder-{path.name}", record)
                if known := collectives(record, rank):
                    found[pid]["collectives"] = known
    mine.write()
    seen: set[str] = set()
    if tails := b"".join(tails_of(pid, seen) for pid in pids):
        mine.file("log-ends.txt", tails)
    for program, commands in _SMI.items():
        texts = [output_of(words, min(_SMI_S, mine.left_s)) for words in commands]
        if any(texts):
            mine.file(f"{program}.txt", "\n".join(text or "" for text in texts).encode())
    mine.report["is_whole"] = True
    mine.write()


def main(words: list[str]) -> int:
    """Collect, and end by an alarm where something here hangs."""
    key, attempt, output, seconds, *signals = words
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, float(seconds) + 2)
    signum = getattr(signal, signals[0]).value if signals else None
    collect(key, Path(attempt), Path(output), float(seconds), signum)
    return 0


if _IS_COPY:
    sys.exit(main(sys.argv[1:]))
