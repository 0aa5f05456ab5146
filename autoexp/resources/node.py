"""What runs on each node of a job: fills in the node's variables, and tells trainers of the limit.

A copy of this file lies beside the payload in the attempt's directory, and runs as a script, so the
standard library alone. `start` becomes the command that follows it; `warn` signals the trainers.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# The same lines stand in other files that run alone: before them there is nothing to import from.
_IS_COPY = "." not in __name__
if _IS_COPY:
    sys.path.insert(0, str(Path(__file__).resolve().parent))
payload: Any = importlib.import_module("payload" if _IS_COPY else "autoexp.payload")

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
# What passes a signal on, or ends all of a step at one: srun, and the runtimes of containers. By
# /proc/PID/comm; Singularity's and Apptainer's own process in a container of its own pids is the
# last two's.
_RUNTIMES = {b"srun", b"starter", b"starter-suid", b"docker", b"podman", b"appinit", b"sinit"}
# What Python and torch start beside a trainer, by its command line.
_HELPERS = re.compile(rb"multiprocessing[./]|_inductor[./]compile_worker")


def variables(
    spec: Mapping[str, Any], environ: Mapping[str, str], job_id: str = ""
) -> dict[str, str]:
    """Variables of this node: those of the configuration, and torchrun's where a rule is given."""
    rule = spec.get("rendezvous", {})
    address = payload.local_address(rule)
    rank = environ.get("SLURM_NODEID", "0")
    values = {
        "hostname": environ.get("SLURMD_NODENAME") or payload.local_address({}),
        "local_address": address,
        "node_rank": rank,
        "rank": environ.get("SLURM_PROCID", "0"),
        "local_rank": environ.get("SLURM_LOCALID", "0"),
        "job_id": job_id,
        "tmpdir": environ.get("TMPDIR") or "/tmp",
    }
    given = spec.get("node_environment", {})
    found = {name: _filled(text, values) for name, text in given.items()}
    if rule:
        # torchrun compares names to find out if it is the host, and takes its node's plain name.
        found |= {"PET_LOCAL_ADDR": address, "PET_RDZV_CONF": f"is_host={int(rank == '0')}"}
    return found


def _filled(text: str, values: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), text)


def trainers(key: str, directory: Path) -> list[int]:
    """The processes of an attempt on this node that a warning is for.

    Not what Python's multiprocessing starts, such as data loaders, which die of it and take their
    trainer along; nor torchrun's agent, which kills its workers after a time of its own; nor srun,
    which ends its step; nor a container's runtime, which passes the signal on once more.
    """
    own = payload.processes_with_cookie(key, directory)
    found = {pid: read_proc(pid, "cmdline") for pid in own if _is_on_this_node(pid)}
    stats = {pid: read_proc(pid, "stat").rpartition(b")")[2].split() for pid in found}
    parent = {pid: int(stat[1]) for pid, stat in stats.items() if stat}
    environ = {pid: read_proc(pid, "environ") for pid in found}
    run = {pid: b"\0TORCHELASTIC_RUN_ID=" in b"\0" + text for pid, text in environ.items()}
    agents = {above for pid, above in parent.items() if run[pid] and not run.get(above, True)}
    forked = {
        pid
        for pid, above in parent.items()
        if found[pid] == found.get(above) and environ[pid] == environ.get(above)
    }
    helpers = {pid for pid, words in found.items() if _HELPERS.search(words)}
    runtimes = {pid for pid in found if read_proc(pid, "comm").strip() in _RUNTIMES}
    return sorted(found.keys() - agents - forked - helpers - runtimes)


def _is_on_this_node(pid: int) -> bool:
    """False for a process of another one of SLURM's nodes, of which a machine may have several."""
    node = f"SLURMD_NODENAME={os.environ.get('SLURMD_NODENAME', '')}\0".encode()
    environ = b"\0" + read_proc(pid, "environ")
    return b"\0SLURMD_NODENAME=" not in environ or b"\0" + node in environ


def read_proc(pid: int, file: str) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/{file}").read_bytes()
    return b""


def warn(key: str, directory: Path, name: str) -> bool:
    """Send a signal to the trainers of an attempt on this node; False where there are none."""
    found = trainers(key, directory)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, getattr(signal, name))
    return bool(found)


def warn_everywhere(directory: Path, name: str, *, steps: bool) -> bool:
    """Signal the trainers on every node of the job, from its payload; True if it found some.

    ``steps``: they are run by srun, behind which each node's are signalled by a step of its own.
    """
    nodes = os.environ.get("SLURM_JOB_NUM_NODES", "1")
    step = ["srun", "--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    step += ["--cpus-per-task=1", "--cpu-bind=none", "--input=none"]
    warning = [sys.executable, str(directory / payload.NODE_FILE), "warn", name]
    return bool(payload.succeeds([*step, *warning] if steps else warning))


def main(words: list[str], directory: Path) -> int:
    """Do what the first word says; `start` does not return."""
    spec = json.loads((directory / "spec.json").read_text())
    if words[0] == "warn":
        return int(not warn(spec["key"], directory, words[1]))
    job_id = payload.claimed_by(directory) or ""
    environ = {**os.environ, **variables(spec, os.environ, job_id)}
    if spec.get("inside"):
        inside: Any = importlib.import_module("inside" if _IS_COPY else "autoexp.resources.inside")
        environ = inside.for_runtime(spec, environ)
    return os.execvpe(words[1], words[1:], environ)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path(__file__).resolve().parent))
