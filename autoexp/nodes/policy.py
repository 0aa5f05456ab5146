"""`nodes` as written: the check before the trainer, and the list of nodes that are avoided."""

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from autoexp.backends.base import AbsolutePath
from autoexp.model import FrozenModel, nearest
from autoexp.rules.durations import Bytes, Duration

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
DISK_VALUES = ("hostname", "tmpdir")


class NodePolicy(FrozenModel):
    """Check the nodes of each attempt before its trainer, and avoid those that are sick."""

    check: Literal["basic", "gpu"] | None = Field(
        None,
        description="`basic`: memory, disks, clock, and a product of matrices against the others' "
        "speed, on each node; `gpu`: also the GPUs, what their memory holds, ECC errors, Xid lines",
    )
    command: tuple[str, ...] = Field(
        (),
        description="a check of your own, run on each node: one that fails calls the node sick, "
        "with its last line as the reason",
    )
    timeout: Duration = Field(180.0, description="how long a check may take")
    disks: tuple[str, ...] = Field(
        ("{tmpdir}",),
        description="directories of each node that have to be there, take a file and have room; "
        "`{hostname}`, and `{tmpdir}`: $TMPDIR, or /tmp",
    )
    least_free: Bytes = Field(10**9, description="room that each of `disks` has to have")
    most_skew: Duration = Field(
        10.0, description="the most that a clock may be away from the other nodes' clocks"
    )
    slowest: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="a node below this share of the others' median speed, or memory, is sick",
    )
    gives_back: int = Field(
        3, ge=0, description="how often a job's attempt may end for sick nodes without counting"
    )
    avoid_file: AbsolutePath | None = Field(
        None,
        description="a file on a shared filesystem with nodes to avoid, for all sessions that name "
        "it: sick nodes are added, and submissions exclude those in it",
    )
    expires: Duration = Field(86400.0, description="how long a sick node is avoided")
    most: int = Field(
        8, ge=0, description="the most nodes that are avoided at once because a check said so"
    )
    share: float = Field(
        0.1,
        gt=0,
        le=1,
        description="the same, as a share of the partition's nodes; one node is always avoided",
    )

    @property
    def checks(self) -> bool:
        """True if anything is checked."""
        return self.check is not None or bool(self.command)

    @model_validator(mode="after")
    def _knows_its_values(self) -> Self:
        for text in self.disks:
            for name in _PLACEHOLDER.findall(text):
                if name not in DISK_VALUES:
                    hint = nearest(name, DISK_VALUES, braces=True)
                    raise ValueError(f"`disks`: nothing is called {{{name}}}{hint}")
        return self

    def most_at_once(self, partition: int | None) -> int:
        """The most nodes to avoid for a check's word, of a partition of so many; None: unknown."""
        if partition is None:
            return self.most
        return min(self.most, max(1, int(partition * self.share)))
