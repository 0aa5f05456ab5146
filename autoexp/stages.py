"""What follows a training: jobs of one command each, started by how their siblings are doing."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from autoexp.backends.base import Closed

TRUNK = "stable"
"""What a point's training is called among its siblings."""
EACH = "cooldown"
"""What the cooldown is called that a stage with `each: cooldown` is for."""


def _not_a_training(name: str) -> str:
    if name in (TRUNK, EACH) or re.match("cd[0-9]", name):
        raise ValueError("the training is `stable`, its cooldowns are `cd1000` and the like")
    return name


StageName = Annotated[
    str,
    Field(
        pattern=r"^[a-z][a-z0-9_]{0,19}$",
        description="lower case, digits and `_`, 20 characters at most",
    ),
    AfterValidator(_not_a_training),
]


class AtCheckpoint(Closed):
    """A point on the way of a sibling."""

    checkpoint: int = Field(gt=0, description="a checkpoint of this iteration is complete")


class Stage(Closed):
    """A job of one command in the same session; its siblings' values are put in as data."""

    command: tuple[str, ...] = Field(
        min_length=1,
        description="an argument each; `{sibling.stable.output_dir}` and the like are filled in",
    )
    kind: Literal["evaluate", "command"] = Field("command", description="what the job counts as")
    each: Literal["cooldown"] | None = Field(
        None, description="a job for each cooldown, which it calls `sibling.cooldown`"
    )
    after: dict[str, Literal["finished"] | AtCheckpoint] = Field(
        default_factory=dict,
        description="siblings and what has to be true of them; those that a template refers to "
        "have to be finished",
    )
    environment: dict[str, str] = Field(default_factory=dict, description="further variables")
    slurm: dict[str, Any] = Field(
        default_factory=dict, description="changes to where it runs: `{gpus_per_node: 1}`"
    )
    minutes: float | None = Field(None, gt=0, description="how long it takes, for the budget")
    scores: str | None = Field(
        None, description="JSON file of numbers that the command writes, in its output directory"
    )

    def texts(self) -> tuple[str, ...]:
        """All templates."""
        return (*self.command, *self.environment.values())


class Awaited(Closed):
    """A job that another one waits for."""

    job: str
    checkpoint: int | None = None
    """The iteration of its checkpoint; None: its end, with the target reached."""

    def __str__(self) -> str:
        return (
            self.job if self.checkpoint is None else f"checkpoint {self.checkpoint} of {self.job}"
        )


class Draft(Closed):
    """A command whose last values are known when it is released: filled then, in one pass."""

    command: tuple[str, ...]
    environment: dict[str, str]
    values: dict[str, str]
    """What was known when it was planned, by name."""
    late: dict[str, Awaited]
    """Names of siblings and whose checkpoint `sibling.NAME.checkpoint_path` is."""
