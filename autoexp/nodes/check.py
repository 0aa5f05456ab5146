"""Checks a node before the trainer, and decides which nodes of the job are sick.

A copy of this file lies beside the payload in the attempt's directory, and runs there on each node
as a script, so the standard library alone (NumPy where it is). Each node leaves `check/NODE.json`;
the payload, on the first node, reads them all.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import operator
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

# The same lines stand in other files that run alone: before them there is nothing to import from.
_IS_COPY = "." not in __name__
if _IS_COPY:
    sys.path.insert(0, str(Path(__file__).resolve().parent))
payload: Any = importlib.import_module("payload" if _IS_COPY else "autoexp.payload")

FOLDER = "check"
_LONGEST = 200
_BLOCK = bytes(range(256)) * 256
_PRODUCTS, _ROWS, _NUMPY_ROWS = 5, 48, 384
_MEMORY_IN_USE = 0.1
_GPU_QUERY = "index,memory.used,memory.total,ecc.errors.uncorrected.volatile.total"
_AMD = "0x1002"
_UNCORRECTABLE = re.compile(r"^ue: (\d+)$", re.MULTILINE)
_ASK_S = 30.0
_XID = re.compile(r"\[\s*(?P<at>\d+)\.\d+\].*NVRM: Xid \((?P<where>[^)]*)\): (?P<number>\d+)")
_XIDS = {48, 64, 74, 79, 95, 119, 120, 140}
"""Of the hardware, by NVIDIA's catalogue of Xid errors; others are often a program's own."""
_XID_AGE_S = 3600.0


def hostname() -> str:
    """This node, by SLURM's name where there is one."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname().partition(".")[0]


# On each node


def disk_problems(disks: Iterable[str], least_free: int) -> list[str]:
    """What is wrong with directories of this node."""
    found = []
    values = {"{hostname}": hostname(), "{tmpdir}": os.environ.get("TMPDIR") or "/tmp"}
    for text in disks:
        for name, value in values.items():
            text = text.replace(name, value)
        path = Path(text) / f".autoexp-check-{os.getpid()}"
        try:
            state = os.statvfs(text)
            if (free := state.f_bavail * state.f_frsize) < least_free:
                found.append(f"{text}: {free / 1e9:.1f} GB are free")
            with os.fdopen(payload.open_own(path, os.O_RDWR | os.O_TRUNC), "r+b") as file:
                file.write(_BLOCK)
                file.flush()
                os.fsync(file.fileno())
                file.seek(0)
                if file.read() != _BLOCK:
                    found.append(f"{text}: does not read back what was written")
        except OSError as error:
            found.append(f"{text}: {error.strerror}")
        finally:
            with contextlib.suppress(OSError):
                path.unlink()
    return found


def memory() -> dict[str, int]:
    """Bytes of this node's memory, in all and available."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    read = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines if ":" in line}
    return {"memory": read.get("MemTotal", 0), "available": read.get("MemAvailable", 0)}


def skew(folder: Path) -> float:
    """Seconds that the file server's clock is ahead of this node's."""
    path = folder / f".clock-{hostname()}"
    try:
        with os.fdopen(payload.open_own(path, os.O_WRONLY | os.O_TRUNC), "w") as file:
            before = time.time()
            file.write("x")
            file.flush()
            os.fsync(file.fileno())
        return path.stat().st_mtime - before
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def speed() -> dict[str, Any]:
    """Products of two matrices in a second of a core's time, the best of a few; and by what."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    multiply: Callable[[], object]
    try:
        numpy = importlib.import_module("numpy")
        matrix = numpy.ones((_NUMPY_ROWS, _NUMPY_ROWS), "float32")
        how, multiply = "numpy", lambda: matrix @ matrix
    except Exception:
        rows = [[float(i + j) for j in range(_ROWS)] for i in range(_ROWS)]
        how, multiply = "python", lambda: product(rows, rows)
    times = []
    for _ in range(_PRODUCTS):
        began = time.process_time()
        multiply()
        times.append(time.process_time() - began)
    return {"speed": 1 / max(min(times), 1e-9), "by": how}


def product(left: Sequence[Sequence[float]], right: Sequence[Sequence[float]]) -> list[list[float]]:
    """The product of two matrices."""
    columns = [[row[place] for row in right] for place in range(len(right[0]))]
    return [[sum(map(operator.mul, row, column)) for column in columns] for row in left]


def gpu_problems(expected: int) -> list[str]:
    """What is wrong with the GPUs of this node, as the driver and the kernel's log say."""
    asked = output_of(["nvidia-smi", f"--query-gpu={_GPU_QUERY}", "--format=csv,noheader,nounits"])
    if asked is None:
        devices = len(list(Path("/dev/dri").glob("renderD*"))) if Path("/dev/kfd").exists() else 0
        return amd_problems(expected, devices)
    return [*read_gpus(asked, expected), *read_xids(output_of(["dmesg"]) or "", _uptime_s())]


def amd_problems(expected: int, devices: int, cards: Path = Path("/sys/class/drm")) -> list[str]:
    """What is wrong with AMD's GPUs, by the files of their driver, amdgpu.

    Memory is in bytes; the errors are those since the driver was loaded, of each block of the GPU
    (https://docs.kernel.org/gpu/amdgpu/driver-misc.html and .../ras.html). All of the node's GPUs
    are seen: what a job does not hold is another one's, and its memory and errors are its own. One
    that is divided is several devices, and one card.
    """
    places = [path / "device" for path in cards.glob("card*") if path.name[4:].isdecimal()]
    found = sorted(path for path in places if _text(path / "vendor") == _AMD)
    if len(found) != expected:
        there = max(len(found), devices)
        return [f"{there} of {expected} GPUs"] if there < expected else []
    problems = []
    for device in found:
        name = device.resolve().name  # its PCI address, which rocm-smi shows as well
        used, total = (_text(device / f"mem_info_vram_{word}") for word in ("used", "total"))
        counts = [_UNCORRECTABLE.search(_text(path)) for path in device.glob("ras/*_err_count")]
        errors = sum(int(count[1]) for count in counts if count)
        problems += problems_of_gpu(name, used, total, 1 << 30, errors)
    return problems


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace").strip()
    return ""


def problems_of_gpu(name: str, used: str, total: str, gib: int, errors: int) -> list[str]:
    """Memory in use, in units of which a GiB has `gib`, and uncorrectable errors of one GPU."""
    found = []
    if used.isdecimal() and total.isdecimal() and int(used) > _MEMORY_IN_USE * int(total):
        found.append(f"GPU {name}: {int(used) / gib:.1f} GiB of its memory are in use")
    if errors:
        found.append(f"GPU {name}: {errors} uncorrectable ECC errors")
    return found


def read_gpus(text: str, expected: int) -> list[str]:
    """Read nvidia-smi's table: GPUs that are missing, have something in memory, or ECC errors."""
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if "," in line]
    found = [f"{len(rows)} of {expected} GPUs"] if len(rows) < expected else []
    for index, used, total, errors, *_ in (row for row in rows if len(row) >= 4):
        count = int(errors) if errors.isdecimal() else 0
        found += problems_of_gpu(index, used, total, 1 << 10, count)
    return found


def read_xids(text: str, uptime_s: float) -> list[str]:
    """Read the kernel's log: errors of the hardware (Xid) within the last hour."""
    found = {
        f"Xid {match['number']} of {match['where']}"
        for match in _XID.finditer(text)
        if int(match["number"]) in _XIDS and uptime_s - int(match["at"]) < _XID_AGE_S
    }
    return sorted(found)


def _uptime_s() -> float:
    return float(Path("/proc/uptime").read_text().split()[0])


def output_of(command: Sequence[str]) -> str | None:
    """Output of a command that ends well in time."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        ended = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_ASK_S,
        )
        if ended.returncode == 0:
            return ended.stdout.decode(errors="replace")
    return None


def own_problem(command: Sequence[str]) -> list[str]:
    """Run the user's own check; its last line where it fails."""
    try:
        ended = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except OSError as error:
        return [f"{command[0]}: {error.strerror}"]
    if ended.returncode == 0:
        return []
    lines = ended.stdout.decode(errors="replace").strip().splitlines()
    return [(lines[-1].strip() if lines else f"{command[0]} exited {ended.returncode}")]


def examine(asked: Mapping[str, Any], directory: Path) -> None:
    """Check this node, and leave its report."""
    folder = directory / FOLDER
    report: dict[str, Any] = {"node": hostname(), "problems": []}
    if asked.get("kind"):
        report.update(memory(), skew=skew(folder), **speed())
        report["problems"] += disk_problems(asked["disks"], asked["least_free"])
    if asked.get("kind") == "gpu":
        report["problems"] += gpu_problems(asked["gpus"])
    if asked.get("own"):
        report["problems"] += own_problem(asked["own"])
    payload.write_json(folder / f"{hostname()}.json", report)


# On the first node


def sick_nodes(
    spec: Mapping[str, Any], directory: Path, run: Callable[[list[str]], int]
) -> dict[str, str]:
    """Have each node checked by `run`; the nodes that are sick, each with the reason."""
    asked, folder = spec["check"], directory / FOLDER
    folder.mkdir(mode=directory.stat().st_mode & 0o777, exist_ok=True)
    for path in folder.glob("*.json"):  # of the run before a requeue
        path.unlink()
    code = run(list(asked["command"]))
    reports = read_reports(folder)
    if not reports:
        print(f"the check of the nodes left no report (exit code {code})", flush=True)
        return {}
    found = decide(reports, nodes_of_job(), asked)
    for name, reason in found.items():
        print(f"node {name} is sick: {reason}", flush=True)
    return found


def read_reports(folder: Path) -> list[dict[str, Any]]:
    """The reports of all nodes; one that cannot be read is left out."""
    found = []
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(OSError, ValueError):
            report = json.loads(path.read_text())
            if isinstance(report, dict) and isinstance(report.get("node"), str):
                found.append(report)
    return found


def nodes_of_job() -> list[str]:
    """Names of the job's nodes; empty where SLURM does not say them."""
    listed = os.environ.get("SLURM_JOB_NODELIST")
    return (output_of(["scontrol", "show", "hostnames", listed]) or "").split() if listed else []


def decide(
    reports: Sequence[Mapping[str, Any]], nodes: Iterable[str], asked: Mapping[str, Any]
) -> dict[str, str]:
    """Which nodes are sick, and why: by their own reports, and against each other: pure."""
    problems = {str(report["node"]): list(report.get("problems", [])) for report in reports}
    for name in nodes:
        if name not in problems:
            problems[name] = [f"did not answer the check within {asked['timeout']:g} s"]
    for report in reports:
        others = [other for other in reports if other is not report]
        problems[str(report["node"])] += _beside_others(report, others, asked)
    return {name: "; ".join(map(str, p))[:_LONGEST] for name, p in sorted(problems.items()) if p}


def _beside_others(
    report: Mapping[str, Any], others: Sequence[Mapping[str, Any]], asked: Mapping[str, Any]
) -> list[str]:
    found = []
    for key, what in (("memory", "memory"), ("speed", "the speed")):
        alike = [
            other[key]
            for other in others
            if other.get(key) and (key == "memory" or other.get("by") == report.get("by"))
        ]
        if alike and report.get(key) is not None:
            share = report[key] / median(alike)
            if share < asked["slowest"]:
                found.append(f"{share:.0%} of {what} of the other nodes")
    skews = [each["skew"] for each in (report, *others) if each.get("skew") is not None]
    if len(skews) > 2 and report.get("skew") is not None:
        away = median(skews) - report["skew"]
        if abs(away) > asked["most_skew"]:
            found.append(f"its clock is {away:+.0f} s from the other nodes' clocks")
    return found


def main(directory: Path) -> int:
    """Check this node within the time that is given."""
    asked = json.loads((directory / "spec.json").read_text())["check"]
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, float(asked["timeout"]))
    examine(asked, directory)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent))
