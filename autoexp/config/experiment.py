"""The experiment as validated: closed, frozen and described, so that a typo is an error."""

from typing import Annotated, Literal

from pydantic import Field

from autoexp.backends.protocol import Backend
from autoexp.backends.registry import AnyBackend
from autoexp.config.cooldowns import Cooldown, Merge
from autoexp.config.stages import Stage, StageName
from autoexp.config.sweep import Sweep
from autoexp.jobs.budget import Budget
from autoexp.model import FrozenModel
from autoexp.resources.containers import Container, NoContainer
from autoexp.resources.machines import Machine
from autoexp.rules.ruleset import Rules

JobName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=60,
        description="letters, digits, `.`, `_`, `-`; 60 characters at most: it is part of file "
        "names and of the scheduler's job name",
    ),
]


class Project(FrozenModel):
    """Name of the experiment and location of its output."""

    name: JobName = Field(description="names the session and the trunk's job")
    description: str = Field("", description="a one-line description")
    output_root: str | None = Field(
        None, description="where jobs write; by default `output/` inside the session"
    )
    share: Literal["owner", "group"] = Field(
        "owner", description="who else may read the session's files; nobody else may write"
    )


class CheckpointSource(FrozenModel):
    """A complete checkpoint that is on disk already, from which cooldowns branch."""

    session: str | None = Field(None, description="the session it comes from, if any")
    job: str | None = Field(None, description="the job of that session that wrote it")
    iteration: int = Field(gt=0, description="its iteration")
    path: str = Field(description="its path")
    samples: int | None = Field(
        None, gt=0, description="samples seen there, where the backend's settings do not say it"
    )
    tokens: int | None = Field(None, gt=0, description="tokens seen there, in the same case")


class Monitoring(Rules):
    """Intervals of looks, publishing and limits; and the rules."""

    file_tick_s: float = Field(2.0, gt=0, description="seconds between looks at logs and folders")
    save_progress_every_s: float = Field(
        10.0, ge=0, description="seconds between writes of a job's record when only numbers changed"
    )
    publish_every_s: float = Field(
        30.0, gt=0, description="least seconds between updates in Prefect without a change of state"
    )
    evaluate_command: tuple[str, ...] = Field(
        (), description="command of evaluation presets for a checkpoint, with templates of rules"
    )
    max_attempts_without_progress: int = Field(
        3, gt=0, description="attempts in a row without a new iteration before a job fails"
    )


class Experiment(FrozenModel):
    """One session: a trunk, where it runs, and the cooldowns that branch from it."""

    project: Project
    backend: AnyBackend = Field(description="which trainer, and its arguments")
    slurm: Machine = Field(description="where jobs run")
    monitoring: Monitoring = Field(default_factory=Monitoring)
    container: Container = Field(
        default_factory=NoContainer, description="the image that the trainer runs in"
    )
    cooldowns: tuple[Cooldown, ...] = ()
    merges: tuple[Merge, ...] = ()
    start: CheckpointSource | None = Field(
        None,
        description="a checkpoint to branch from instead of training; set by `--from`, and by the "
        "deployment `cooldown`",
    )
    stages: dict[StageName, Stage | None] = Field(
        default_factory=dict,
        description="jobs after the training and its cooldowns; `null` switches one off",
    )
    sweep: Sweep | None = Field(None, description="many settings of the experiment, in one session")
    budget: Budget = Field(default_factory=Budget, description="GPU hours")

    @property
    def trainer(self) -> Backend:
        """The backend, as the protocol that all backends implement."""
        return self.backend
