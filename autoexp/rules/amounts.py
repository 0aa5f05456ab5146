"""Amounts of training as written in YAML, before their unit is counted: `6B`, `3M samples`."""

import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field

Unit = Literal["tokens", "samples", "iterations"]

_WRITTEN = re.compile(
    r"(?P<number>[0-9]+(?:\.[0-9]+)?(?:e[0-9]+)?)\s*(?P<suffix>[KMBT]?)\s*"
    r"(?P<unit>tokens|samples|iterations)?"
)
SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


class Amount(NamedTuple):
    """A whole number, and its unit."""

    amount: int
    unit: Unit


def read_amount(written: str | float, unit: Unit | None = None) -> Amount:
    """Read an amount; `unit` is for numbers without a unit. Raises ValueError for another text.

    Without one, a suffix stands for tokens and a bare number for iterations.
    """
    match = _WRITTEN.fullmatch(str(written).strip())
    if match is None:
        raise ValueError(f"{written!r} is not an amount, such as 6B, `3M samples` or 1200")
    amount = float(match["number"]) * SUFFIXES[match["suffix"]]
    if amount != int(amount):
        raise ValueError(f"{written!r} is not a whole number")
    spelled: Any = match["unit"] or unit or ("tokens" if match["suffix"] else "iterations")
    return Amount(int(amount), spelled)


def shortened(amount: int) -> str:
    """An amount for people, of four digits: `49.99B`."""
    factor, suffix = max(
        (factor, suffix) for suffix, factor in SUFFIXES.items() if amount >= factor or factor == 1
    )
    return f"{amount / factor:.4g}{suffix}"


def _tokens(written: Any) -> Any:
    if not isinstance(written, str):
        return written
    amount, unit = read_amount(written, "tokens")
    if unit != "tokens":
        raise ValueError(f"{written!r} are {unit}, and no tokens")
    return amount


Tokens = Annotated[int, BeforeValidator(_tokens), Field(gt=0)]
"""Tokens; in YAML a number, or `2B`."""
