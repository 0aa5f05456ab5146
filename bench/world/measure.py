"""Measuring: CPU time, bytes and calls of a piece of work, and figures with their targets."""

import importlib.metadata
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from bench.world import yardstick

RESULTS = Path(__file__).parents[1] / "results"
_PACKAGES = ("prefect", "pydantic", "submitit", "hydra-core", "hyperscan")


class Figure(NamedTuple):
    """One measured quantity, all its repeats, and what it should be."""

    what: str
    unit: str
    values: list[float]
    below: float | None = None
    """The mark, if it is an upper one."""
    least: float | None = None
    """The mark, if it is a lower one."""
    note: str = ""
    scale: float = 1.0
    """This machine's time for the fixed piece of Python, of which the mark is a multiple, through
    that of the machine that the mark is written for; 1 for what no machine changes."""

    @property
    def at_most(self) -> float | None:
        """The upper mark on this machine."""
        return None if self.below is None else self.below * self.scale

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> str:
        """The least and the greatest repeat."""
        return f"{min(self.values):.3g} to {max(self.values):.3g}" if len(self.values) > 1 else ""

    @property
    def verdict(self) -> str:
        """`met`, `missed`, or nothing where there is no mark."""
        if self.below is None and self.least is None:
            return ""
        low = self.least is None or self.median >= self.least
        high = self.at_most is None or self.median <= self.at_most
        return "met" if low and high else "missed"

    def content(self) -> dict[str, Any]:
        """For the results' JSON."""
        return {
            "what": self.what,
            "unit": self.unit,
            "median": self.median,
            "repeats": self.values,
            "at_most": self.at_most,
            "scale": self.scale,
            "at_least": self.least,
            "verdict": self.verdict,
            "note": self.note,
        }


def save(case: str, figures: list[Figure], load: tuple[float, float]) -> Path:
    """Write a case's figures with the machine and the versions that they are of."""
    RESULTS.mkdir(exist_ok=True)
    content = {
        "case": case,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "yardsticks": yardstick.known(),
        "versions": versions(),
        "load_average_before_and_after": load,
        "figures": [figure.content() for figure in figures],
    }
    path = RESULTS / f"{case}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "vectors": yardstick.instruction_sets(),
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Python and the packages that matter, where they are installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def cpu_s(work: Callable[[], object]) -> float:
    """Seconds of CPU that `work` takes in this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def wall_s(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def resident_mb() -> float:
    """Memory that this process holds now, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


class Traffic(NamedTuple):
    """Bytes that this process has read and written through system calls."""

    read: int
    written: int

    @classmethod
    def now(cls) -> "Traffic":
        # /proc counts whatever goes through read and write, this very read included.
        lines = Path("/proc/self/io").read_text().splitlines()
        counts = {name: int(number) for name, number in (line.split(": ") for line in lines)}
        return cls(counts["rchar"], counts["wchar"])


def traffic(work: Callable[[], object]) -> Traffic:
    """Bytes that `work` reads and writes."""
    start = Traffic.now()
    nothing = Traffic.now()
    work()
    end = Traffic.now()
    # The second reading has cost what every reading costs.
    return Traffic(
        end.read - nothing.read - (nothing.read - start.read), end.written - start.written
    )


@contextmanager
def counted_calls(*, python: bool = False) -> Iterator[Counter[str]]:
    """Count calls of functions written in C (`stat`, `open`, `fsync`), by their names.

    With `python`, count calls of functions written in Python too.
    """
    calls: Counter[str] = Counter()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "c_call":
            calls[argument.__name__] += 1
        elif event == "call" and python:
            calls[frame.f_code.co_name] += 1

    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(None)
