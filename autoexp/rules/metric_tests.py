"""Tests that metric rules make on the numbers that a job logs."""

from pydantic import Field

from autoexp.model import FrozenModel


class NotANumber(FrozenModel):
    """The loss is printed as NaN, or is missing where there was one before."""

    logged: int = Field(3, gt=0, description="so many logged iterations in a row")


class LossAbove(FrozenModel):
    """The loss is too high."""

    value: float = Field(description="nats per token")
    logged: int = Field(3, gt=0, description="so many logged iterations in a row")
    after: int = Field(0, ge=0, description="not before this iteration")


class Spike(FrozenModel):
    """The loss is far above the median of what was logged before."""

    times: float = Field(2.0, gt=1, description="times the median")
    over: int = Field(50, gt=1, le=200, description="logged iterations that the median is of")
    logged: int = Field(3, gt=0, le=20, description="so many logged iterations in a row")


class ThroughputBelow(FrozenModel):
    """Iterations take longer than they did."""

    share: float = Field(0.5, gt=0, lt=1, description="share of the median speed")
    over: int = Field(50, gt=1, le=200, description="logged iterations that the median is of")
    logged: int = Field(10, gt=0, le=50, description="so many logged iterations in a row")


class OffSchedule(FrozenModel):
    """A cooldown's learning rate is not the planned one."""

    tolerance: float = Field(0.05, gt=0, lt=1, description="as a share of the peak learning rate")
    logged: int = Field(3, gt=0, le=20, description="so many logged iterations in a row")


MetricTest = NotANumber | LossAbove | Spike | ThroughputBelow | OffSchedule
