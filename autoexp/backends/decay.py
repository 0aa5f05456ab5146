"""Planned learning rates of cooldowns and baselines: decay shapes are those of every trainer."""

import math
from bisect import bisect_right
from collections.abc import Callable

from autoexp.backends.protocol import Branch

DEFAULT_POWER = 2.0
# Megatron's WSD decay styles (optimizer_param_scheduler.py), which torchtitan calls sqrt, and the
# Trainer 1-sqrt.
_SHAPES: dict[str, Callable[[float], float]] = {
    "minus_sqrt": lambda x: 1 - math.sqrt(x),
    "linear": lambda x: 1 - x,
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    "exponential": lambda x: 2 * 0.5**x - 1,
}


def shape_of(branch: Branch) -> Callable[[float], float] | None:
    """The curve of a decay, from 1 at 0 to 0 at 1; None for an unknown shape."""
    if branch.shape == "power":
        power = branch.power or DEFAULT_POWER
        return lambda x: (1 - x) ** power
    if branch.shape == "points" and branch.points:
        points = branch.points
        return lambda x: _between(points, x)
    return _SHAPES.get(branch.shape)


def standard_shape(name: str) -> Callable[[float], float]:
    """A curve by its name alone; raises KeyError for one that needs more than a name."""
    return _SHAPES[name]


def decayed(
    peak: float | None, branch: Branch, iteration: int, *, warmup: int = 0, first: float = 0.0
) -> float | None:
    """The rate at an iteration of a branch that decays from `peak`; None for an unknown one.

    A baseline rises to it over `warmup` iterations, in a line that begins at `first`.
    """
    shape = shape_of(branch)
    if shape is None or peak is None:
        return None
    if branch.is_baseline and iteration < warmup:
        return first + (peak - first) * iteration / warmup
    length = branch.decay_iterations - branch.hold_iterations
    done = min(1.0, max(0.0, (iteration - branch.falls_from) / length))
    return branch.min_lr + (peak - branch.min_lr) * shape(done)


def _between(points: tuple[tuple[float, float], ...], x: float) -> float:
    """The height of a broken line at `x`."""
    place = min(bisect_right([at for at, _ in points], x), len(points) - 1)
    (left, low), (right, high) = points[place - 1], points[place]
    return low + (high - low) * (x - left) / (right - left)
