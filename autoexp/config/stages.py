"""Stages: further jobs after a training, started by the state of their siblings."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from autoexp.model import FrozenModel
from autoexp.templates import texts_in

TRUNK = "stable"
"""Name of a point's training among its siblings."""
EACH = "cooldown"
"""Name of the cooldown that a stage with `each: cooldown` is for."""
LATE = ("checkpoint_path", "checkpoint_iteration")
"""Values of a sibling that are known only when the stage is released."""


def is_first(sibling: str) -> bool:
    """True if a sibling is the point's first training or a cooldown, merge or baseline of it."""
    return sibling in (TRUNK, EACH) or re.match("(cd|merge|base)[0-9]", sibling) is not None


def _not_a_training(name: str) -> str:
    if is_first(name):
        raise ValueError(
            "the training is `stable`, its cooldowns are `cd1000`, its merges `merge1000`, its "
            "baselines `base2000-cosine` and so on"
        )
    return name


StageName = Annotated[
    str,
    Field(
        pattern=r"^[a-z][a-z0-9_]*$",
        max_length=20,
        description="lower case, digits and `_`, 20 characters at most",
    ),
    AfterValidator(_not_a_training),
]


class AtCheckpoint(FrozenModel):
    """A checkpoint of a sibling to wait for."""

    checkpoint: int = Field(gt=0, description="a checkpoint of this iteration is complete")


class Stage(FrozenModel):
    """One more job in the same session, or a training with cooldowns of its own.

    Values of its siblings are put in as data.
    """

    command: tuple[str, ...] = Field(
        (),
        description="list of arguments; `{sibling.stable.output_dir}` and the like are filled in",
    )
    train: dict[str, Any] = Field(
        default_factory=dict,
        description="in place of a command: the experiment's training once more, with these "
        "settings changed, such as `backend.args.lr: 1e-4`; texts are templates",
    )
    kind: Literal["evaluate", "command", "upload"] = Field(
        "command",
        description="the kind of the job; while an `upload` runs, checkpoints below the folders "
        "that it names stay",
    )
    each: Literal["cooldown"] | None = Field(
        None, description="a job for each cooldown, which its templates call `sibling.cooldown`"
    )
    after: dict[str, Literal["finished"] | AtCheckpoint] = Field(
        default_factory=dict,
        description="siblings and what has to be true of them; those that a template refers to "
        "have to be finished",
    )
    environment: dict[str, str] = Field(
        default_factory=dict, description="additional environment variables"
    )
    slurm: dict[str, Any] = Field(
        default_factory=dict,
        description="changes to its resources: `{gpus_per_node: 1}`; `{kind: local}` runs it "
        "beside the monitor, as on a login node",
    )
    container: dict[str, Any] = Field(
        default_factory=dict,
        description="changes to the container of a command: `{kind: none}`, `{image: FILE}`",
    )
    launcher: Literal["none", "srun", "torchrun"] = Field(
        "none", description="what starts a command on its nodes"
    )
    minutes: float | None = Field(None, gt=0, description="its estimated length, for the budget")
    scores: str | None = Field(
        None,
        description="JSON file of numbers that the command writes, in its output directory; or "
        "the directory of lm-eval's `--output_path`",
    )

    @model_validator(mode="after")
    def _a_command_or_a_training(self) -> Self:
        if bool(self.command) == bool(self.train):
            raise ValueError("give exactly one of `command` and `train`")
        of_commands = ("kind", "environment", "minutes", "scores", "container", "launcher")
        fields = type(self).model_fields
        foreign = [
            x
            for x in of_commands
            if getattr(self, x) != fields[x].get_default(call_default_factory=True)
        ]
        if self.train and foreign:
            raise ValueError(f"{', '.join(foreign)}: only for a command, and this is a training")
        return self

    def templates(self) -> tuple[str, ...]:
        """All templates."""
        return (*self.command, *self.environment.values(), *texts_in(self.train))
