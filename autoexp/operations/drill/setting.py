"""The experiment of a drill, and which of its exercises a machine allows: values alone."""

from pathlib import Path
from typing import Any

from autoexp.errors import BadInput
from autoexp.planning.plan import Plan
from autoexp.resources.machines import LocalMachine, SlurmCluster
from autoexp.states import Kind

CONFIG = "drill"
SICK_NODE, MONITOR, SERVER = "sick node", "monitor", "Prefect server"
STEP, JOB, BUDGET, DISK, WHOLE = "step", "job", "full budget", "full disk", "whole session"
EXERCISES = (SICK_NODE, MONITOR, SERVER, STEP, JOB, BUDGET, DISK, WHOLE)
"""In their order."""

MONITOR_AT, SERVER_AT, BUDGET_AT = 100, 200, 400
"""Planned branch points, at which these exercises happen."""
HOLDS = {SERVER: 150, STEP: 250, JOB: 350, BUDGET: 380, WHOLE: 420}
"""Iterations at which the training waits, for the exercise that lets it go on.

Each has one of its own: a training that is cancelled saves behind its hold, and goes on from there.
"""
REASON = "a drill pretends it"

# The first node that comes is the sick one; mkdir is one step on every filesystem. The name comes
# by an argument, so that no character of a path is a word of the shell.
_PRETENDS = (
    f"node=${{SLURMD_NODENAME:-$(uname -n)}}; "
    'mkdir "$1" 2>/dev/null && echo "$node" > "$1/node"; '
    f'[ "$(cat "$1/node" 2>/dev/null)" != "$node" ] || {{ echo "{REASON}"; exit 1; }}'
)


def folder_of(session: Path) -> Path:
    """The directory of a session in which a drill keeps what its jobs read."""
    return session / "drill"


def holds_below(session: Path) -> Path:
    """The directory in which a file holds the training at the iteration of its name."""
    return folder_of(session) / "hold"


def log_of(session: Path) -> Path:
    """What the monitor of a drill prints."""
    return folder_of(session) / "monitor.log"


def avoided_below(session: Path) -> Path:
    """The drill's own list of nodes: nobody else's jobs are to avoid a pretended sick one."""
    return folder_of(session) / "avoided-nodes.jsonl"


def fill_in(values: dict[str, Any], session: Path, *, pretends: bool) -> dict[str, Any]:
    """Add to the composed values what belongs to this drill: holds, one process, the sick node."""
    backend = dict(values.get("backend") or {})
    backend["args"] = {**(backend.get("args") or {}), "hold": str(holds_below(session))}
    machine = dict(values.get("slurm") or {})
    if machine.get("kind") == "slurm":
        # The demo's trainer is one process and needs no torch; a step is to be killed.
        machine |= {"launcher": "srun", "tasks_per_node": 1}
    filled = {**values, "backend": backend, "slurm": machine}
    if pretends:
        command = ["sh", "-c", _PRETENDS, "drill", str(folder_of(session) / "sick")]
        own = {"command": command, "avoid_file": str(avoided_below(session))}
        filled["nodes"] = {**(values.get("nodes") or {}), **own}
    return filled


def refuse(words: list[str]) -> None:
    """Raise BadInput for another configuration than the drill's own."""
    if names := [word for word in words if "=" not in word and not word.startswith("~")]:
        raise BadInput(
            f"{names[0]}: a drill runs the demo's training, whatever you train: give overrides "
            "alone, such as slurm=lumi or slurm.nodes=2"
        )


def refuse_plan(plan: Plan) -> None:
    """Raise BadInput for a plan in which the exercises would not find what they need."""
    trunks = [job for job in plan.jobs if job.kind is Kind.TRAIN]
    points = sorted(job.branch.iteration for job in plan.jobs if job.branch is not None)
    wanted = [MONITOR_AT, SERVER_AT, BUDGET_AT]
    ends = [job.target_iteration for job in trunks]
    if len(trunks) != 1 or points != wanted or (ends[0] or 0) <= max(HOLDS.values()):
        raise BadInput(
            f"a drill needs its own training, of more than {max(HOLDS.values())} iterations with "
            f"cooldowns at {', '.join(map(str, wanted))}: leave out `cooldowns`, `sweep`, "
            "`baselines` and the trainer's length; `slurm.…` and `container.…` are yours"
        )


def not_possible(machine: LocalMachine | SlurmCluster, usable_nodes: int | None) -> dict[str, str]:
    """The exercises that a machine does not allow, each with the reason.

    ``usable_nodes`` are those of the partition that take jobs; None: SLURM does not say it.
    """
    found: dict[str, str] = {}
    if not isinstance(machine, SlurmCluster):
        found[SICK_NODE] = "this machine is the only node"
        found[JOB] = "there is no scancel on this machine; its processes are killed as a step"
    elif usable_nodes is None:
        found[SICK_NODE] = "SLURM does not say how many nodes the partition has"
    elif usable_nodes <= machine.nodes:
        found[SICK_NODE] = (
            f"{usable_nodes} usable nodes in the partition, and each job takes {machine.nodes}: "
            "none would be left"
        )
    if machine.gpus == 0:
        found[BUDGET] = "its jobs hold no GPUs, so no GPU hours are used (slurm.gpus_per_node)"
    return found
