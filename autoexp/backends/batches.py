"""Samples of each iteration: converts tokens and samples into iterations."""

import math
from collections.abc import Iterator
from typing import NamedTuple


class Ramp(NamedTuple):
    """A growing batch size, as by Megatron's `--rampup-batch-size`."""

    start: int
    increment: int
    samples: int
    """Samples over which it grows to the final size."""


class Stage(NamedTuple):
    """A batch size that holds until some samples are consumed."""

    size: int
    until: int
    """Consumed samples at which the next size begins."""


class Batches(NamedTuple):
    """Samples of each iteration, from the first one on."""

    size: int
    """Samples of an iteration, once all growth is over."""
    tokens_per_sample: int | None = None
    ramp: Ramp | None = None
    stages: tuple[Stage, ...] = ()
    """Other sizes before, as by Megatron's `--step-batch-size-schedule`."""
    per_epoch: int | None = None
    """Iterations that see the data set once; None if its size is not known."""

    @property
    def grows(self) -> bool:
        """True if the first iterations have fewer samples than the last ones."""
        return self.ramp is not None or bool(self.stages)

    def samples(self, iterations: int) -> int:
        """Samples consumed by the first `iterations` iterations."""
        consumed = 0
        for size, until in self._stages():
            here = min(iterations, _iterations_until(until, consumed, size))
            consumed += here * size
            iterations -= here
        return consumed + iterations * self.size

    def iterations(self, samples: int) -> int:
        """The most iterations that consume no more than `samples`."""
        done = consumed = 0
        for size, until in self._stages():
            here = min((samples - consumed) // size, _iterations_until(until, consumed, size))
            done += here
            consumed += here * size
            if samples - consumed < size:
                return done
        return done + (samples - consumed) // self.size

    def tokens(self, iterations: int) -> int | None:
        """Tokens consumed by the first `iterations` iterations."""
        if self.tokens_per_sample is None:
            return None
        return self.samples(iterations) * self.tokens_per_sample

    def _stages(self) -> Iterator[tuple[int, int]]:
        """Batch sizes before the last one, and the consumed samples at which each ends.

        Source: Megatron-LM, RampupBatchsizeNumMicroBatchesCalculator and, from core_v0.18,
        StepBatchsizeNumMicroBatchesCalculator.
        """
        yield from self.stages
        if self.ramp is None:
            return
        steps = (self.size - self.ramp.start) // self.ramp.increment
        for step in range(steps):
            until = _first_at(step + 1, self.ramp.samples / steps, self.ramp.samples)
            yield self.ramp.start + step * self.ramp.increment, until


def _first_at(step: int, samples_per_step: float, samples: int) -> int:
    """The first number of consumed samples that is in a step: by Megatron's division of floats.

    That may be one more than the product of the two says, as 295 / (295 / 7) is below 7.
    """
    found = math.ceil(samples_per_step * step)
    while found <= samples and int(found / samples_per_step) < step:
        found += 1
    while int((found - 1) / samples_per_step) >= step:
        found -= 1
    return found


def _iterations_until(until: int, consumed: int, size: int) -> int:
    return max(0, math.ceil((until - consumed) / size))
