"""Planned learning rates of cooldowns: the decay shapes are the same for every trainer."""

import math
from collections.abc import Callable

from autoexp.backends.protocol import Branch

# Megatron's WSD decay styles (optimizer_param_scheduler.py), which torchtitan calls sqrt, and the
# Trainer 1-sqrt.
_SHAPES: dict[str, Callable[[float], float]] = {
    "minus_sqrt": lambda x: 1 - math.sqrt(x),
    "linear": lambda x: 1 - x,
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
}


def decayed(peak: float | None, branch: Branch, iteration: int) -> float | None:
    """The rate at an iteration of a branch that decays from `peak`; None for an unknown one."""
    shape = _SHAPES.get(branch.shape)
    if shape is None or peak is None:
        return None
    done = min(1.0, max(0.0, (iteration - branch.iteration) / branch.decay_iterations))
    return branch.min_lr + (peak - branch.min_lr) * shape(done)
