"""What this machine does in the same run: hosts differ by more than any change of the code."""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

WRITTEN_FOR_S = 0.018
"""What `python_s` is on the machine that marks in seconds and microseconds are written for."""
_STEPS = 100_000
_COPIED = 1 << 26
_TIMES = 5
_LINES = 200_000


def python_s() -> float:
    """Seconds of CPU of a fixed piece of Python: calls, dictionaries, texts and small objects."""
    return min(_cpu_s(_piece) for _ in range(_TIMES))


def scale() -> float:
    """This machine, now, through the one that marks are written for."""
    return python_s() / WRITTEN_FOR_S


def stats_s(paths: Iterable[str]) -> float:
    """Seconds of CPU of the least that a stat of each path takes in Python."""
    paths = list(paths)

    def ask() -> None:
        for path in paths:
            os.stat(path)  # noqa: PTH116

    return min(_cpu_s(ask) for _ in range(_TIMES))


def known() -> dict[str, float]:
    """The fixed piece of Python, a copy of memory, and ripgrep, if it is installed."""
    source = bytearray(_COPIED)
    copied = min(_cpu_s(lambda: bytes(source)) for _ in range(_TIMES))
    found = {"python_ms": python_s() * 1e3, "copy_gb_per_s": _COPIED / copied / 1e9}
    if shutil.which("rg"):
        found["ripgrep_mb_per_s"] = _ripgrep_mb_per_s()
    return {name: round(value, 3) for name, value in found.items()}


def _piece() -> int:
    table: dict[str, tuple[int, str]] = {}
    total = 0
    for number in range(_STEPS):
        total += _step(table, number)
    return total


def _step(table: dict[str, tuple[int, str]], number: int) -> int:
    name = f"job{number % 1000}"
    before = table.get(name)
    table[name] = (number, name.upper()) if before is None else (before[0] + 1, before[1])
    return len(name)


def _ripgrep_mb_per_s() -> float:
    line = b" rank %d: iteration %d took 812.1 ms, nothing that anybody looks for is in it\n"
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        log.write_bytes(b"".join(line % (number % 8, number) for number in range(_LINES)))
        command = [
            "rg",
            "--no-config",
            "-a",
            "-c",
            "-e",
            "CUDA error: .*",
            "-e",
            "Killed",
            str(log),
        ]
        taken = []
        for _ in range(_TIMES):
            before = os.times()
            subprocess.run(command, capture_output=True)
            after = os.times()
            taken.append(sum(after[2:4]) - sum(before[2:4]))
        return log.stat().st_size / 1e6 / max(min(taken), 0.01)


def children_cpu_s(work: Callable[[], object]) -> float:
    """Seconds of CPU of the processes that `work` starts and waits for."""
    before = os.times()
    work()
    after = os.times()
    return sum(after[2:4]) - sum(before[2:4])


def _cpu_s(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def instruction_sets() -> list[str]:
    """The processor's vector instructions, which matchers choose from."""
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    return sorted(flag for flag in flags if re.fullmatch(r"avx2|avx512\w+|sse4_2|ssse3", flag))
