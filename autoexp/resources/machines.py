"""Machines as configured: this machine, or a SLURM cluster."""

import os
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union

from pydantic import Field, ValidationInfo, field_validator, model_validator

from autoexp import sinks
from autoexp.extensions import entry_points
from autoexp.model import COMPOSING, FrozenModel, nearest
from autoexp.resources.launchers import (
    ELASTIC,
    Launching,
    Rendezvous,
    refuse_misfits,
    torchrun_workers,
)
from autoexp.resources.local import LocalMachine as LocalMachine
from autoexp.resources.local import OwnMachine, refuse_early_warning
from autoexp.resources.pools import POOL_FIELD
from autoexp.resources.sbatch_options import OPTIONS, OURS

_CHOOSES_CLUSTER = ("SBATCH_CLUSTERS", "SLURM_CLUSTERS")
_CLUSTER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

_PLUGIN_OPTION = re.compile(r"[a-z][a-z0-9-]*")

OptionValue = str | int | float | bool


class SmallerJobs(FrozenModel):
    """A shorter limit for jobs of few nodes, as at Frontier."""

    nodes: int = Field(gt=0, description="the most nodes of such a job")
    time_min: float = Field(gt=0, description="minutes of such a job")


class KnownLimit(FrozenModel):
    """The most that a partition or QOS allows, as the site says."""

    time_min: float | None = Field(None, gt=0, description="minutes of a job")
    nodes: int | None = Field(None, gt=0, description="nodes of a job")
    smaller: tuple[SmallerJobs, ...] = Field(
        (), description="where jobs of fewer nodes get less time: `[{nodes: 91, time_min: 120}]`"
    )

    def minutes_for(self, nodes: int) -> float | None:
        """Minutes of a job of so many nodes; None if no limit is known."""
        fitting = [(size.nodes, size.time_min) for size in self.smaller if nodes <= size.nodes]
        return min(fitting)[1] if fitting else self.time_min


class SlurmCluster(Launching):
    """Jobs run on a SLURM cluster, one batch job per attempt."""

    kind: Literal["slurm"] = "slurm"
    scheduler_tick_s: float = Field(15.0, gt=0, description="seconds between two queries")
    query_timeout_s: float = Field(30.0, gt=0, description="seconds a SLURM command may take")
    max_jobs: int | None = Field(None, gt=0, description="jobs of a session in the queue at once")
    budget_pool: str | None = POOL_FIELD
    login_cpu_s: float | None = Field(
        None,
        gt=0,
        description="seconds of CPU that a login node gives a process, besides `ulimit -t`",
    )

    hosts: tuple[str, ...] = Field(
        (), description="names of its nodes, with `*`: `slurm=auto` chooses by them"
    )
    clusters: str | None = Field(
        None,
        description="which cluster, where the login node serves several (`sbatch --clusters`): one",
    )
    account: str | None = Field(None, description="account to charge; often required")
    partition: str | None = Field(None, description="partition; the cluster's default if unset")
    qos: str | None = Field(None, description="quality of service")
    nodes: int = Field(
        1,
        gt=0,
        description="nodes of a job; `2:4` are four, of which it goes on with two where nodes fail",
    )
    min_nodes: int | None = Field(
        None,
        gt=0,
        description="the fewest nodes, the same as the first number of `nodes: 2:4`: torchrun goes "
        "on with as few, ft_launcher trains on as many, and the others stand by",
    )
    gpus_per_node: int = Field(0, ge=0, description="GPUs on each node")
    request_gpus: bool = Field(
        True, description="ask sbatch for them; off where whole nodes are given, or by `options`"
    )
    tasks_per_node: int = Field(1, gt=0, description="tasks that srun starts on each node")
    cpus_per_task: int | None = Field(None, gt=0, description="CPU cores for each task")
    options: dict[str, OptionValue] = Field(
        default_factory=dict,
        description="other sbatch options by long name: `constraint: gpu`, `exclusive: true`",
    )
    plugin_options: dict[str, OptionValue] = Field(
        default_factory=dict,
        description="options of sbatch that a site's plugin defines, by long name: not checked",
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
    known_limits: dict[str, KnownLimit] = Field(
        default_factory=dict,
        description="what partitions and QOSes allow, by name: a plan warns above it",
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

    launcher: Literal["none", "srun", "torchrun", "ft_launcher"] = Field(
        "none", description="launcher of the trainer inside the job"
    )
    srun_arguments: tuple[str, ...] = Field((), description="further arguments for srun")
    cpu_bind: str | None = Field(
        None, description="srun's `--cpu-bind`: `cores`, `none`, `mask_cpu:0xfe,0xfe00`"
    )
    gpu_bind: str | None = Field(None, description="srun's `--gpu-bind`: `closest`, `none`")
    rendezvous: Rendezvous = Field(
        default_factory=Rendezvous,
        description="the name or address by which processes find the job's first node",
    )
    setup: tuple[str, ...] = Field(
        (), description="shell lines before the trainer, such as `module load`; trusted as they are"
    )
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
            "torchrun": self.nodes * torchrun_workers(self),
            "ft_launcher": (self.nodes - self.spares) * torchrun_workers(self),
        }
        return each[self.launcher]

    @property
    def spares(self) -> int:
        """Nodes that stand by: their GPUs train nothing until another node fails."""
        return self.nodes - (self.min_nodes or self.nodes) if self.launcher == "ft_launcher" else 0

    @property
    def worlds(self) -> tuple[int, ...]:
        """The numbers of processes with which a trainer may go on in one job."""
        if self.launcher != "torchrun":
            return (self.workers,)
        least = self.min_nodes or self.nodes
        return tuple(nodes * torchrun_workers(self) for nodes in range(self.nodes, least - 1, -1))

    def configured_limit_min(self, *, cooldown: bool) -> float | None:
        """Configured or largest time limit of a job in minutes; None leaves it to the partition."""
        fixed = self.cooldown_time_limit_min if cooldown else None
        return self.time_limit_min if fixed is None else fixed

    def remarks(self) -> list[str]:
        """Sentences for a plan: more than the site says that it allows, and what spares cost."""
        # A QOS is chosen for its limits, which win over the partition's.
        name = self.qos if self.qos in self.known_limits else self.partition
        known = self.known_limits.get(name or "", KnownLimit())
        limits = ("time_limit_min", "cooldown_time_limit_min")
        asked = {limit: getattr(self, limit) for limit in limits}
        longest = known.minutes_for(self.nodes)
        sized = " for so few nodes" if longest != known.time_min else ""
        found = [
            f"`slurm.{limit}: {minutes:g}` is more than the {longest:g} minutes that {name} allows"
            f"{sized} by its site's pages: jobs get what SLURM says that it allows"
            for limit, minutes in asked.items()
            if minutes is not None and longest is not None and minutes > longest
        ]
        if self.spares:
            found.append(
                f"{self.spares} of the {self.nodes} nodes of a job stand by: they cost as much as "
                f"those that train ({self.spares * self.gpus_per_node} of {self.gpus} GPUs)"
            )
        if known.nodes is not None and self.nodes > known.nodes:
            found.append(
                f"`slurm.nodes: {self.nodes}` is more than the {known.nodes} that {name} allows by "
                "its site's pages: such a job waits for ever"
            )
        return found

    @model_validator(mode="before")
    @classmethod
    def _range_of_nodes(cls, value: Any) -> Any:
        nodes = value.get("nodes") if isinstance(value, dict) else None
        if isinstance(nodes, str) and ":" in nodes:
            if value.get("min_nodes") is not None:
                raise ValueError(f"`nodes: {nodes}` says `min_nodes` too: give one of them")
            least, _, most = nodes.partition(":")
            return {**value, "nodes": most.strip(), "min_nodes": least.strip()}
        return value

    def _refuse_misfit_spares(self) -> None:
        elastic = self.launcher in ELASTIC
        if self.launcher == "ft_launcher" and self.tasks_per_node > 1:
            raise ValueError("ft_launcher runs once a node: `tasks_per_node` has to be 1")
        if self.min_nodes is None:
            return
        if not elastic:
            raise ValueError("`min_nodes` needs `launcher: torchrun` or `ft_launcher`")
        if self.min_nodes > self.nodes:
            raise ValueError(f"`min_nodes` {self.min_nodes} is more than the {self.nodes} nodes")
        if self.min_nodes < self.nodes and self.restarts == 0:
            raise ValueError(
                "with fewer nodes than it began with it goes on only by a restart: give "
                "`slurm.restarts`, such as 3"
            )

    @field_validator("options")
    @classmethod
    def _known_options(cls, options: dict[str, OptionValue]) -> dict[str, OptionValue]:
        for name in options:
            spelled = name.replace("_", "-")
            if spelled in OURS:
                raise ValueError(f"`{name}` is set by autoexp ({OURS[spelled]})")
            if spelled not in OPTIONS:
                hint = nearest(spelled, OPTIONS)
                raise ValueError(
                    f"`{name}` is not an option of sbatch{hint or '.'} One of a plugin of your "
                    "site belongs in `plugin_options`, an image in `container: pyxis` or `edf`"
                )
            if isinstance(options[name], str):
                sinks.batch_option(str(options[name]))
        return {name.replace("_", "-"): value for name, value in options.items()}

    @field_validator("plugin_options")
    @classmethod
    def _of_a_plugin(cls, options: dict[str, OptionValue]) -> dict[str, OptionValue]:
        for name, value in options.items():
            spelled = name.replace("_", "-")
            if spelled in OURS or spelled in OPTIONS or not _PLUGIN_OPTION.fullmatch(spelled):
                raise ValueError(f"`{name}` is no option of a plugin: see `options`")
            if isinstance(value, str):
                sinks.batch_option(value)
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
        refuse_misfits(self, self.launcher)
        self._refuse_misfit_spares()
        for name in ("cpu_bind", "gpu_bind"):
            if self.launcher == "none" and getattr(self, name):
                raise ValueError(f"`{name}` is an option of srun: it needs a `launcher`")
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
