"""GPU hours: planned use of jobs, and the limits that a user sets."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from autoexp.model import FrozenModel

if TYPE_CHECKING:
    from autoexp.jobs.spec import JobSpec


class Budget(FrozenModel):
    """GPU-hour planning, the limit for confirmation, and the limit that stops submissions."""

    seconds_per_iteration: float | None = Field(
        None, gt=0, description="measured speed of the training"
    )
    measured_in: str | None = Field(
        None, description="a session whose measured speed is used, unless one is given"
    )
    startup_s: float = Field(
        0.0, ge=0, description="seconds that a job takes besides its iterations"
    )
    confirm_above: float | None = Field(
        None, gt=0, description="planned GPU hours above which a plan needs confirmation"
    )
    stop_above: float | None = Field(
        None, gt=0, description="used GPU hours above which no new job is submitted"
    )


class Estimate(FrozenModel):
    """Planned GPU hours of a job, and the source of the figure."""

    gpu_hours: float
    source: str


class Total(NamedTuple):
    """The hours of several jobs."""

    gpu_hours: float
    unknown: int
    """Jobs of unknown length."""

    def __str__(self) -> str:
        known = f"{self.gpu_hours:.2f} GPU hours"
        return f"{known}, and {self.unknown} jobs of unknown length" if self.unknown else known


def total(jobs: Iterable["JobSpec"]) -> Total:
    """Planned GPU hours of the jobs together."""
    found = [job.planned for job in jobs]
    hours = sum(estimate.gpu_hours for estimate in found if estimate is not None)
    return Total(hours, sum(estimate is None for estimate in found))


def estimate(
    spec: "JobSpec", budget: Budget, minutes: float | None = None, *, pace: float = 1.0
) -> Estimate | None:
    """Planned GPU hours of a job; None when its length is unknown.

    `minutes` is how long a job without iterations takes, `pace` how much longer one of its
    iterations is than the training's.
    """
    if spec.machine.gpus == 0:
        return Estimate(gpu_hours=0.0, source="no GPUs")
    limit = spec.configured_limit_min
    if spec.target_iteration is not None and budget.seconds_per_iteration is not None:
        start = spec.branch.iteration if spec.branch else 0
        iterations = spec.target_iteration - start
        each = budget.seconds_per_iteration * pace
        seconds = budget.startup_s + iterations * each
        measured = f", measured in {budget.measured_in}" if budget.measured_in else ""
        source = f"{each:g} s per iteration{measured}"
    elif minutes is not None:
        seconds, source = budget.startup_s + minutes * 60, f"{minutes:g} minutes"
    elif limit is not None:
        seconds, source = limit * 60, f"time limit of {limit:g} minutes"
    else:
        return None
    return Estimate(gpu_hours=seconds / 3600 * spec.machine.gpus, source=source)
