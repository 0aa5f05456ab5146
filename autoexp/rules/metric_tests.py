"""Tests that metric rules make on the numbers that a job logs."""

from typing import Literal

from pydantic import Field

from autoexp.model import FrozenModel


class NotANumber(FrozenModel):
    """The loss is printed as NaN, or is missing where there was one before."""

    logged: int = Field(3, gt=0, description="so many logged iterations in a row")


class LossAbove(FrozenModel):
    """The loss is too high."""

    value: float = Field(description="nats per token, or a norm")
    of: Literal["loss", "validation_loss", "grad_norm"] = Field("loss", description="which metric")
    logged: int = Field(3, gt=0, description="so many logged iterations in a row")
    after: int = Field(0, ge=0, description="not before this iteration")


class Spike(FrozenModel):
    """The loss is far above the median of what was logged before."""

    times: float = Field(2.0, gt=1, description="times the median")
    of: Literal["loss", "grad_norm"] = Field("loss", description="which metric")
    over: int = Field(50, gt=1, le=200, description="logged iterations that the median is of")
    logged: int = Field(3, gt=0, le=20, description="so many logged iterations in a row")


class ThroughputBelow(FrozenModel):
    """Iterations take longer than they did."""

    share: float = Field(0.5, gt=0, lt=1, description="share of the median speed")
    of: Literal["seconds", "tokens_per_s", "tflops", "mfu"] = Field(
        "seconds", description="which metric: seconds per iteration, or what the trainer prints"
    )
    over: int = Field(50, gt=1, le=200, description="logged iterations that the median is of")
    logged: int = Field(10, gt=0, le=50, description="so many logged iterations in a row")


class OffSchedule(FrozenModel):
    """A cooldown's learning rate is not the planned one."""

    tolerance: float = Field(0.05, gt=0, lt=1, description="as a share of the peak learning rate")
    logged: int = Field(3, gt=0, le=20, description="so many logged iterations in a row")


class Continuity(FrozenModel):
    """A branch, or an attempt, starts far above the losses before its checkpoint.

    Not where a branch changes its data, or begins with a higher rate.
    """

    spreads: float = Field(
        6.0, gt=0, description="standard deviations of the losses before, from one to the next"
    )
    over: int = Field(20, ge=5, le=50, description="logged losses before, of which they are")
    logged: int = Field(
        3, gt=0, le=20, description="first logged iterations, of which the median counts"
    )


MetricTest = NotANumber | LossAbove | Spike | ThroughputBelow | OffSchedule | Continuity
