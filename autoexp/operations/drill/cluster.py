"""What a drill asks of a cluster, and does to its own jobs there; on this machine, to processes."""

import os
import re
import signal
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import timedelta

from autoexp import payload
from autoexp.errors import SchedulerError, SchedulerUnavailable
from autoexp.model import now
from autoexp.resources import node
from autoexp.resources.machines import LocalMachine, SlurmCluster
from autoexp.schedulers.base import AttemptRef
from autoexp.schedulers.slurm.commands import SlurmCommandFailed, at, run

_USABLE = {"idle", "mixed", "allocated", "completing", "planned"}
_STEP = re.compile(r"[0-9]+\.[0-9]+")
_SINCE = timedelta(days=1)


def usable_nodes(machine: LocalMachine | SlurmCluster) -> int | None:
    """Number of the partition's nodes that take jobs; None where SLURM does not say it."""
    if not isinstance(machine, SlurmCluster):
        return 1
    which = ("-p", machine.partition) if machine.partition else ()
    try:
        rows = _ask(machine, "sinfo", "-h", "-N", "-o", "%N %T", *which).splitlines()
    except (SlurmCommandFailed, SchedulerUnavailable):
        return None
    # A star behind the state is a node that does not answer.
    found = [row.split() for row in rows]
    return len({words[0] for words in found if words[1:] and words[1] in _USABLE}) or None


def kill_step(machine: LocalMachine | SlurmCluster, ref: AttemptRef) -> str:
    """Kill what trains in a running attempt, as a crash or the kernel would; says what was killed.

    Raises SchedulerError where there is nothing to kill.
    """
    if not isinstance(machine, SlurmCluster):
        found = node.trainers(ref.key, ref.directory)
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            raise SchedulerError(f"{ref.key} has no process that trains")
        return "SIGKILL to the training's process"
    listed = _told(machine, "squeue", "-h", "-s", "-j", str(ref.job_id), "-o", "%i").split()
    steps = [step for step in listed if _STEP.fullmatch(step)]
    if not steps:
        raise SchedulerError(f"job {ref.job_id} has no step that trains")
    # The last one that began: those before it have checked or set up the nodes.
    step = max(steps, key=lambda name: int(name.partition(".")[2]))
    _told(machine, "scancel", "--signal=KILL", step)
    return f"`scancel --signal=KILL {step}`, the training's step"


def cancel_job(machine: SlurmCluster, ref: AttemptRef) -> str:
    """Cancel a job behind the back of its monitor; says how."""
    _told(machine, "scancel", str(ref.job_id))
    return f"`scancel {ref.job_id}`, as if by somebody else"


def submitted(
    machine: LocalMachine | SlurmCluster, refs: Iterable[AttemptRef]
) -> dict[str, list[str]]:
    """The jobs of each attempt by its key: the recorded one, that of the claim, and SLURM's.

    Accounting that does not answer leaves the queue, the record and the claim.
    """
    refs = list(refs)
    found: dict[str, list[str]] = {ref.key: [] for ref in refs}
    for ref in refs:
        found[ref.key] += filter(None, (ref.job_id, payload.claimed_by(ref.directory)))
    if isinstance(machine, SlurmCluster) and refs:
        names = ",".join(ref.name for ref in refs)
        since = (now() - _SINCE).strftime("%Y-%m-%dT%H:%M:%S")
        asked = (
            ("squeue", "--me", "-h", "-t", "all", "-o", "%i|%j", f"--name={names}"),
            ("sacct", "-X", "-n", "-P", "-o", "JobID,JobName", f"--name={names}", "-S", since),
        )
        keys = {ref.name: ref.key for ref in refs}
        for command in asked:
            with suppress(SlurmCommandFailed, SchedulerUnavailable):
                for line in _ask(machine, *command).splitlines():
                    job_id, _, name = line.partition("|")
                    if name in keys:
                        found[keys[name]].append(job_id)
    return found


def node_names(
    machine: LocalMachine | SlurmCluster, lists: dict[str, str | None]
) -> dict[str, Sequence[str]]:
    """The nodes of each attempt, by name, from SLURM's short form `n[1-3]`."""
    found: dict[str, Sequence[str]] = defaultdict(tuple)
    for key, listed in lists.items():
        if not listed:
            continue
        found[key] = (listed,)
        if isinstance(machine, SlurmCluster) and "[" in listed:
            with suppress(SlurmCommandFailed, SchedulerUnavailable):
                found[key] = tuple(_ask(machine, "scontrol", "show", "hostnames", listed).split())
    return found


def _told(machine: SlurmCluster, *command: str) -> str:
    """As `_ask`; a refusal is a SchedulerError."""
    try:
        return _ask(machine, *command)
    except SlurmCommandFailed as error:
        raise SchedulerError(str(error)) from error


def _ask(machine: SlurmCluster, *command: str) -> str:
    return run(at(machine.at, list(command)), machine.query_timeout_s)
