"""Machines as configured: this machine, or a SLURM cluster."""

import os
import re
from typing import TYPE_CHECKING, Annotated, Literal, Self, Union

from pydantic import Field, ValidationInfo, field_validator, model_validator

from autoexp import sinks
from autoexp.extensions import entry_points
from autoexp.model import COMPOSING, FrozenModel, nearest
from autoexp.redaction import Variables
from autoexp.resources.local import LocalMachine as LocalMachine
from autoexp.resources.local import OwnMachine, refuse_early_warning
from autoexp.resources.sbatch_options import OPTIONS, OURS

_CHOOSES_CLUSTER = ("SBATCH_CLUSTERS", "SLURM_CLUSTERS")
_CLUSTER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

OptionValue = str | int | float | bool


class SlurmCluster(FrozenModel):
    """Jobs run on a SLURM cluster, one batch job per attempt."""

    kind: Literal["slurm"] = "slurm"
    scheduler_tick_s: float = Field(15.0, gt=0, description="seconds between two queries")
    query_timeout_s: float = Field(30.0, gt=0, description="seconds a SLURM command may take")
    max_jobs: int | None = Field(None, gt=0, description="jobs of a session in the queue at once")
    login_cpu_s: float | None = Field(
        None,
        gt=0,
        description="seconds of CPU that a login node gives a process, besides `ulimit -t`",
    )

    clusters: str | None = Field(
        None,
        description="which cluster, where the login node serves several (`sbatch --clusters`): one",
    )
    account: str | None = Field(None, description="account to charge; often required")
    partition: str | None = Field(None, description="partition; the cluster's default if unset")
    qos: str | None = Field(None, description="quality of service")
    nodes: int = Field(1, gt=0, description="nodes of a job")
    gpus_per_node: int = Field(0, ge=0, description="GPUs on each node")
    tasks_per_node: int = Field(1, gt=0, description="tasks that srun starts on each node")
    cpus_per_task: int | None = Field(None, gt=0, description="CPU cores for each task")
    options: dict[str, OptionValue] = Field(
        default_factory=dict,
        description="other sbatch options by long name: `constraint: gpu`, `exclusive: true`",
    )

    time_limit_min: float | None = Field(
        None,
        gt=0,
        description="time limit of the training, minutes; the partition's default if unset",
    )
    cooldown_time_limit_min: float | None = Field(
        None,
        gt=0,
        description="minutes for a cooldown; if unset, derived from the training's measured speed",
    )
    time_margin: float = Field(
        1.3, ge=1, description="a derived time is the measured one times this, plus start-up"
    )
    startup_min: float = Field(10.0, ge=0, description="minutes a job needs besides its iterations")
    warn_before_limit_s: int = Field(
        120,
        ge=0,
        description="seconds before the limit at which the trainer is signalled to save",
        validate_default=True,
    )
    grace_s: float = Field(
        30.0, gt=0, description="seconds between SIGTERM and SIGKILL when a trainer is ended"
    )
    requeue: bool = Field(False, description="let SLURM itself requeue; each requeue keeps the id")
    arrays: bool = Field(
        False, description="jobs of one kind that start together go as one SLURM array"
    )
    array_parallel: int | None = Field(
        None, gt=0, description="tasks of an array that may run at once"
    )
    chain: int = Field(
        1, ge=1, description="number of attempts queued ahead (SLURM `afterany` dependencies)"
    )

    launcher: Literal["none", "srun", "torchrun"] = Field(
        "none", description="launcher of the trainer inside the job"
    )
    srun_arguments: tuple[str, ...] = Field((), description="further arguments for srun")
    setup: tuple[str, ...] = Field(
        (), description="shell lines before the trainer, such as `module load`; trusted as they are"
    )
    environment: Variables = Field(default_factory=dict, description="variables for the trainer")
    python: str | None = Field(
        None, description="Python on the compute nodes, 3.8 or later; the current one if unset"
    )
    lost_after_s: float = Field(
        300.0, gt=0, description="seconds of healthy answers without a job until it counts as lost"
    )

    @property
    def gpus(self) -> int:
        """GPUs that a job holds."""
        return self.nodes * self.gpus_per_node

    @property
    def at(self) -> str | None:
        """The cluster for every command; None: the machine's own."""
        own = self.options.get("clusters")
        return self.clusters or None if own is None else str(own)

    @property
    def workers(self) -> int:
        """Processes of a trainer: one for each GPU under torchrun, one for each task under srun."""
        each = {
            "none": 1,
            "srun": self.nodes * self.tasks_per_node,
            "torchrun": self.nodes * max(1, self.gpus_per_node),
        }
        return each[self.launcher]

    def configured_limit_min(self, *, cooldown: bool) -> float | None:
        """Configured or largest time limit of a job in minutes; None leaves it to the partition."""
        fixed = self.cooldown_time_limit_min if cooldown else None
        return self.time_limit_min if fixed is None else fixed

    @field_validator("options")
    @classmethod
    def _known_options(cls, options: dict[str, OptionValue]) -> dict[str, OptionValue]:
        for name in options:
            spelled = name.replace("_", "-")
            if spelled in OURS:
                raise ValueError(f"`{name}` is set by autoexp ({OURS[spelled]})")
            if spelled not in OPTIONS:
                hint = nearest(spelled, OPTIONS)
                raise ValueError(f"`{name}` is not an option of sbatch{hint}")
            if isinstance(options[name], str):
                sinks.batch_option(str(options[name]))
        return {name.replace("_", "-"): value for name, value in options.items()}

    @field_validator("warn_before_limit_s")
    @classmethod
    def _warns_in_time(cls, warning_s: int, info: ValidationInfo) -> int:
        if info.context == COMPOSING:  # not of a session that runs already
            refuse_early_warning(warning_s, info, "time_limit_min", "cooldown_time_limit_min")
        return warning_s

    @field_validator("account", "partition", "qos")
    @classmethod
    def _on_one_line(cls, value: str | None) -> str | None:
        return None if value is None else sinks.batch_option(value)

    @model_validator(mode="after")
    def _one_cluster(self, info: ValidationInfo) -> Self:
        chosen = [name for name in _CHOOSES_CLUSTER if os.environ.get(name)]
        is_named = "clusters" in self.options or "clusters" in self.model_fields_set
        if info.context == COMPOSING and chosen and not is_named:
            # autoexp removes such variables for SLURM's commands: jobs would be sent elsewhere.
            raise ValueError(
                f"${chosen[0]} chooses a cluster, and the configuration does not say which: add "
                f"`clusters: {os.environ[chosen[0]]}`, or `clusters: null` for the machine's own"
            )
        if self.at is not None and (self.at == "all" or not _CLUSTER.fullmatch(self.at)):
            raise ValueError(
                f"`clusters` is to name one cluster, not {self.at!r}: jobs of several may have the "
                "same id. It comes from $SBATCH_CLUSTERS or $SLURM_CLUSTERS unless it is set"
            )
        return self

    @model_validator(mode="after")
    def _launcher_fits(self) -> Self:
        if self.nodes > 1 and self.launcher == "none":
            raise ValueError("several nodes need a `launcher`: srun or torchrun")
        return self


if TYPE_CHECKING:
    Machine = Annotated[LocalMachine | SlurmCluster, Field(discriminator="kind")]
else:
    _KINDS = ("local", "slurm")
    _INSTALLED = entry_points.installed(
        entry_points.SCHEDULERS, OwnMachine, entry_points.kinds, _KINDS
    )
    Machine = Annotated[
        Union[(LocalMachine, SlurmCluster, *_INSTALLED)], Field(discriminator="kind")
    ]
