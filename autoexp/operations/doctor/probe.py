"""Stands in for a trainer in the doctor's job: reports its place, and each signal that reaches it.

Runs with the Python of the trainer, so the standard library alone: `probe.py REPORTS [FILE]`, where
FILE is one at which the trainer would save.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType

_DEVICES = ("nvidia[0-9]*", "dri/renderD*")
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
_PATIENCE_S = 150.0


def report() -> dict[str, object]:
    """This process's place: its number, node, cores and devices."""
    environ, devices = os.environ, (Path("/dev").glob(pattern) for pattern in _DEVICES)
    return {
        "rank": int(environ.get("RANK") or environ.get("SLURM_PROCID") or 0),
        "host": environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        "cores": sorted(os.sched_getaffinity(0)),
        "devices": [str(path) for found in devices for path in sorted(found)],
        "visible": {name: environ[name] for name in _VISIBLE if name in environ},
    }


def write(path: Path, content: object) -> None:
    """Write a file whole: it is looked for at any moment."""
    part = path.with_name("." + path.name)
    part.write_text(json.dumps(content))
    part.replace(path)


def main(folder: Path, file: Path | None) -> int:
    """Report, then wait for a signal, or for the file, and report that."""
    found = report()
    told: list[str] = []

    def note(signum: int, _frame: FrameType | None) -> None:
        told.append(signal.Signals(signum).name)

    for name in ("SIGTERM", "SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, name), note)
    write(folder / f"report-{found['rank']}.json", found)
    end_s = time.monotonic() + _PATIENCE_S
    while not told and time.monotonic() < end_s:
        if file is not None and file.exists():
            told.append("file")
        time.sleep(0.05)
    if told:
        write(folder / f"told-{found['rank']}.json", told[0])
    return 0 if told else 1


if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(main(Path(words[0]), Path(words[1]) if len(words) > 1 else None))
