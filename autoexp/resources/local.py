"""This machine as configured, and machines of packages, which begin from it."""

from abc import abstractmethod
from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from autoexp.resources.launchers import Launching, refuse_misfits, torchrun_workers
from autoexp.resources.pools import POOL_FIELD


class LocalMachine(Launching):
    """Jobs run as processes on this machine, through submitit's local executor."""

    kind: Literal["local"] = "local"
    scheduler_tick_s: float = Field(1.0, gt=0, description="seconds between two looks at the jobs")
    max_jobs: int | None = Field(None, gt=0, description="jobs of a session at the same time")
    budget_pool: str | None = POOL_FIELD
    time_limit_min: float | None = Field(None, gt=0, description="minutes an attempt may run")
    warn_before_limit_s: int = Field(
        30,
        ge=0,
        description="seconds before the limit at which the trainer is signalled to save",
        validate_default=True,
    )
    gpus_per_node: int = Field(0, ge=0, description="GPUs a job may see")
    launcher: Literal["none", "torchrun"] = Field(
        "none", description="torchrun: a process for each GPU, or `workers_per_node` of them"
    )

    @property
    def gpus(self) -> int:
        """GPUs that a job holds."""
        return self.gpus_per_node

    @property
    def workers(self) -> int:
        """Processes of a trainer."""
        if self.launcher != "torchrun":
            return 1
        return torchrun_workers(self)

    @property
    def worlds(self) -> tuple[int, ...]:
        """The numbers of processes with which a trainer may go on in one job."""
        return (self.workers,)

    def configured_limit_min(self, *, cooldown: bool) -> float | None:
        """Minutes that a job may run."""
        del cooldown  # is nothing special here
        return self.time_limit_min

    @field_validator("warn_before_limit_s")
    @classmethod
    def _warns_in_time(cls, warning_s: int, info: ValidationInfo) -> int:
        refuse_early_warning(warning_s, info, "time_limit_min")
        return warning_s

    @model_validator(mode="after")
    def _launcher_fits(self) -> Self:
        refuse_misfits(self, self.launcher)
        return self


class OwnMachine(LocalMachine):
    """A machine of a package, with a scheduler of its own."""

    @abstractmethod
    def scheduler(self) -> Any:
        """The scheduler, as in `autoexp/schedulers/base.py`; its module is imported here."""


def refuse_early_warning(warning_s: int, info: ValidationInfo, *limits: str) -> None:
    """Raise where a trainer would be signalled to save before it has started."""
    for name in limits:
        minutes = info.data.get(name)
        if minutes is not None and warning_s + 1 > minutes * 60:
            raise ValueError(
                f"`{name}: {minutes:g}` leaves no time before the warning, which comes "
                f"{warning_s} s earlier; raise `{name}` or lower `warn_before_limit_s`"
            )
