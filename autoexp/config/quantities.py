"""Amounts of training as written in YAML: `6B`, `3M samples`, `1200 iterations`, `3 epochs`."""

import math
from typing import Any

from pydantic import Field

from autoexp.backends.batches import Batches
from autoexp.model import FrozenModel
from autoexp.rules.durations import SUFFIXES, Unit, read_amount


class Quantity(FrozenModel):
    """An amount of training."""

    amount: int = Field(gt=0)
    unit: Unit

    def __str__(self) -> str:
        if self.unit == "iterations":
            return str(self.amount)
        for suffix, factor in reversed(SUFFIXES.items()):
            if self.amount * 1000 % factor == 0 and self.amount >= factor:
                return f"{self.amount / factor:g}{suffix} {self.unit}"
        return f"{self.amount} {self.unit}"

    def iterations(self, batches: Batches | None, share: float = 1.0) -> int:
        """Iterations of a share of it; raises ValueError where that is unknown."""
        if self.unit == "iterations":
            return round(share * self.amount)
        if batches is None:
            raise ValueError(f"the backend does not say how many {self.unit} an iteration takes")
        if self.unit == "epochs":
            if batches.per_epoch is None:
                raise ValueError("the backend does not say how many samples the data set has")
            return math.ceil(share * self.amount * batches.per_epoch - 1e-6)
        samples = share * self.amount
        if self.unit == "tokens":
            if batches.tokens_per_sample is None:
                raise ValueError("the backend does not say how many tokens a sample has")
            samples /= batches.tokens_per_sample
        # A tiny bit more, so that 0.8 of 10 is not 7.999….
        return batches.iterations(int(samples + 1e-6))


def read_quantity(written: Any, unit: Unit | None = None) -> Any:
    """Read a quantity from YAML, of which other values are none; `unit` is for bare numbers."""
    if not isinstance(written, str | int | float) or isinstance(written, bool):
        return written
    return read_amount(written, unit)._asdict()


def read_point(written: Any) -> Any:
    """Read a length that is iterations unless a unit or a suffix says otherwise."""
    if not isinstance(written, str):
        return written
    found = read_amount(written)
    return found.amount if found.unit == "iterations" else found._asdict()
