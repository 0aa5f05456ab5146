"""Amounts of training as written in YAML: `6B`, `3M samples`, `1200 iterations`."""

import re
from typing import Any, Literal

from pydantic import Field

from autoexp.backends.batches import Batches
from autoexp.model import FrozenModel

Unit = Literal["tokens", "samples", "iterations"]

_WRITTEN = re.compile(
    r"(?P<number>[0-9]+(?:\.[0-9]+)?(?:e[0-9]+)?)\s*(?P<suffix>[KMBT]?)\s*"
    r"(?P<unit>tokens|samples|iterations)?"
)
_SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


class Quantity(FrozenModel):
    """An amount of training."""

    amount: int = Field(gt=0)
    unit: Unit

    def __str__(self) -> str:
        if self.unit == "iterations":
            return str(self.amount)
        for suffix, factor in reversed(_SUFFIXES.items()):
            if self.amount * 1000 % factor == 0 and self.amount >= factor:
                return f"{self.amount / factor:g}{suffix} {self.unit}"
        return f"{self.amount} {self.unit}"

    def iterations(self, batches: Batches | None, share: float = 1.0) -> int:
        """Iterations of a share of it; raises ValueError where that is unknown."""
        if self.unit == "iterations":
            return round(share * self.amount)
        if batches is None:
            raise ValueError(f"the backend does not say how many {self.unit} an iteration takes")
        samples = share * self.amount
        if self.unit == "tokens":
            if batches.tokens_per_sample is None:
                raise ValueError("the backend does not say how many tokens a sample has")
            samples /= batches.tokens_per_sample
        # A tiny bit more, so that 0.8 of 10 is not 7.999….
        return batches.iterations(int(samples + 1e-6))


def read_quantity(written: Any, unit: Unit | None = None) -> Any:
    """Read a quantity from YAML; `unit` is for numbers without a unit.

    Without one, a suffix stands for tokens and a bare number for iterations.
    """
    if not isinstance(written, str | int | float) or isinstance(written, bool):
        return written
    match = _WRITTEN.fullmatch(str(written).strip())
    if match is None:
        raise ValueError(f"{written!r} is not an amount, such as 6B, `3M samples` or 1200")
    amount = float(match["number"]) * _SUFFIXES[match["suffix"]]
    if amount != int(amount):
        raise ValueError(f"{written!r} is not a whole number")
    spelled = match["unit"] or unit or ("tokens" if match["suffix"] else "iterations")
    return {"amount": int(amount), "unit": spelled}
