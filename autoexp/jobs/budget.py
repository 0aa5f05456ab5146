"""GPU hours: what jobs are planned to take, and how much somebody answers for."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from autoexp.model import Closed

if TYPE_CHECKING:
    from autoexp.jobs.spec import JobSpec


class Budget(Closed):
    """How GPU hours are planned, and where somebody has to agree, or nothing more starts."""

    seconds_per_iteration: float | None = Field(
        None, gt=0, description="speed of the training, as it was measured"
    )
    measured_in: str | None = Field(
        None, description="a session whose measured speed is taken, unless one is given"
    )
    startup_s: float = Field(
        0.0, ge=0, description="seconds that a job takes beside its iterations"
    )
    confirm_above: float | None = Field(
        None, gt=0, description="planned GPU hours above which somebody has to agree"
    )
    stop_above: float | None = Field(
        None, gt=0, description="spent GPU hours above which nothing more is launched"
    )


class Estimate(Closed):
    """GPU hours that a job is planned to take, and where the figure is from."""

    gpu_hours: float
    source: str


class Total(NamedTuple):
    """The hours of several jobs."""

    gpu_hours: float
    unknown: int
    """Jobs of which nobody can tell."""

    def __str__(self) -> str:
        known = f"{self.gpu_hours:.2f} GPU hours"
        return f"{known}, and {self.unknown} jobs of unknown length" if self.unknown else known


def total(jobs: Iterable["JobSpec"]) -> Total:
    """What the jobs are planned to take together."""
    found = [job.planned for job in jobs]
    hours = sum(estimate.gpu_hours for estimate in found if estimate is not None)
    return Total(hours, sum(estimate is None for estimate in found))


def estimate(spec: "JobSpec", budget: Budget, minutes: float | None = None) -> Estimate | None:
    """What a job is planned to take; None when nothing says how long it runs.

    `minutes` is how long a job without iterations takes.
    """
    if spec.machine.gpus == 0:
        return Estimate(gpu_hours=0.0, source="no GPUs")
    limit = spec.configured_limit_min
    if spec.target_iteration is not None and budget.seconds_per_iteration is not None:
        start = spec.branch.iteration if spec.branch else 0
        iterations = spec.target_iteration - start
        seconds = budget.startup_s + iterations * budget.seconds_per_iteration
        measured = f", measured in {budget.measured_in}" if budget.measured_in else ""
        source = f"{budget.seconds_per_iteration:g} s per iteration{measured}"
    elif minutes is not None:
        seconds, source = budget.startup_s + minutes * 60, f"{minutes:g} minutes"
    elif limit is not None:
        seconds, source = limit * 60, f"time limit of {limit:g} minutes"
    else:
        return None
    return Estimate(gpu_hours=seconds / 3600 * spec.machine.gpus, source=source)
