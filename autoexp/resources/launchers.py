"""How a trainer's processes are started on the nodes of a job, as configured."""

import re
from collections.abc import Mapping
from typing import Literal, Protocol, Self

from pydantic import Field, model_validator

from autoexp.model import FrozenModel, nearest
from autoexp.redaction import Variables

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")

NODE_VALUES = {
    "hostname": "the node's name",
    "local_address": "its name or address by the rule in `rendezvous`",
    "node_rank": "its number in the job, from 0",
    "rank": "the process's number in the job, from 0",
    "local_rank": "the process's number on its node, from 0",
    "job_id": "the scheduler's id of the job",
    "tmpdir": "$TMPDIR, or /tmp",
}
"""What `{name}` stands for in `node_environment`; filled in by `autoexp/schedulers/node.py`."""
_OF_A_PROCESS = ("rank", "local_rank")
_OF_TORCHRUN = {
    "launcher_arguments": "srun's own are `srun_arguments`",
    "restarts": "under srun and alone, rules restart attempts",
    "numa_binding": "it is an option of torchrun; ft_launcher reads $NVRX_GPUS_PER_NUMA",
    "workers_per_node": "under srun that is `tasks_per_node`",
}
_RESTARTS = ("--max-restarts", "--max_restarts")


class Rendezvous(FrozenModel):
    """The name by which the processes of a job find its first node."""

    suffix: str = Field(
        "",
        pattern=r"^[A-Za-z0-9._-]*$",
        description="ending of the node's short name: `i` at JSC, whose plain names do not lead "
        "over InfiniBand",
    )
    address: bool = Field(False, description="the address that the node's name has, not the name")
    interface: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9._-]{1,15}$",
        description="the address of this network interface, such as ib0",
    )

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.suffix and self.interface:
            raise ValueError("give `suffix` or `interface`: an interface has an address, no name")
        return self

    @property
    def is_default(self) -> bool:
        """True for the node's own name."""
        return self == Rendezvous()


ELASTIC = ("torchrun", "ft_launcher")
"""Launchers that run once a node, start the trainer's processes there, and start them again."""


class Launching(FrozenModel):
    """What a machine says about the processes of a trainer."""

    launcher_arguments: tuple[str, ...] = Field(
        (), description="further arguments for torchrun or ft_launcher"
    )
    restarts: int = Field(
        0,
        ge=0,
        description="times that torchrun or ft_launcher starts the trainer again within an "
        "attempt, from its newest checkpoint, when a process or a node of it fails",
    )
    workers_per_node: int | None = Field(
        None,
        gt=0,
        description="processes that torchrun or ft_launcher starts a node; one a GPU if unset",
    )
    numa_binding: Literal["node", "socket", "exclusive", "core-complex"] | None = Field(
        None, description="torchrun binds each process to its GPU's cores (torch 2.9 or later)"
    )
    numactl: tuple[str, ...] = Field(
        (), description="arguments of numactl, under which the trainer starts: `--membind=0-3`"
    )
    environment: Variables = Field(default_factory=dict, description="variables for the trainer")
    node_environment: Variables = Field(
        default_factory=dict,
        description="variables that are filled in on each node, and win over the others: "
        + ", ".join(f"`{{{name}}}` ({what})" for name, what in NODE_VALUES.items()),
    )
    node_setup: tuple[str, ...] = Field(
        (),
        description="shell lines that run once on each node before the trainer, as a step of their "
        "own; trusted as they are",
    )


class _Node(Protocol):
    """What a machine says of its nodes."""

    @property
    def workers_per_node(self) -> int | None: ...
    @property
    def gpus_per_node(self) -> int: ...


def torchrun_workers(machine: _Node) -> int:
    """Processes that torchrun starts on each node."""
    return machine.workers_per_node or max(1, machine.gpus_per_node)


def refuse_misfits(machine: Launching, launcher: str) -> None:
    """Raise ValueError for settings that this launcher would ignore, or cannot fill in."""
    for name, instead in _OF_TORCHRUN.items():
        takes = ("torchrun",) if name == "numa_binding" else ELASTIC
        if launcher not in takes and getattr(machine, name):
            raise ValueError(f"`{name}` needs `launcher: {' or '.join(takes)}`; {instead}")
    if machine.restarts and any(word.startswith(_RESTARTS) for word in machine.launcher_arguments):
        raise ValueError("`restarts` and `launcher_arguments` both say --max-restarts")
    _refuse_unknown_values(machine.node_environment, launcher)


def _refuse_unknown_values(variables: Mapping[str, str], launcher: str) -> None:
    for variable, text in variables.items():
        for name in _PLACEHOLDER.findall(text):
            where = f"`node_environment.{variable}`"
            if name not in NODE_VALUES:
                hint = nearest(name, NODE_VALUES, braces=True)
                known = ", ".join(f"{{{known}}}" for known in NODE_VALUES)
                raise ValueError(f"{where}: nothing is called {{{name}}}{hint} There are {known}")
            if name in _OF_A_PROCESS and launcher in ELASTIC:
                raise ValueError(
                    f"{where}: {{{name}}} is not known before {launcher} starts the processes; it "
                    f"sets ${name.upper()} for each of them"
                )
