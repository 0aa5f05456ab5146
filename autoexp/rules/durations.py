"""Durations and amounts of training as written in YAML: `90`, `10m`, `2h`; `6B`, `3M samples`."""

import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_WRITTEN = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)")


def _seconds(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    match = _WRITTEN.fullmatch(value.strip())
    if match is None:
        raise ValueError("not a duration: write 90, 30s, 10m, 2h or 1d")
    return float(match[1]) * _SECONDS[match[2]]


Duration = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]
"""Seconds; in YAML a number, or a number with `s`, `m`, `h` or `d`."""


def spoken(seconds: float) -> str:
    """`90 s`, `10 min`, `2 h`: the largest unit that leaves no rest."""
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit and seconds % unit == 0:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:g} s"


# Amounts of training

Unit = Literal["tokens", "samples", "iterations", "epochs"]

_AMOUNT = re.compile(
    r"(?P<number>[0-9]+(?:\.[0-9]+)?(?:e[0-9]+)?)\s*(?P<suffix>[KMBT]?)\s*"
    r"(?P<unit>tokens|samples|iterations|epochs)?"
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
    match = _AMOUNT.fullmatch(str(written).strip())
    if match is None:
        raise ValueError(f"{written!r} is not an amount, such as 6B, `3M samples` or 1200")
    amount = float(match["number"]) * SUFFIXES[match["suffix"]]
    if amount != int(amount):
        raise ValueError(f"{written!r} is not a whole number")
    spelled: Any = match["unit"] or unit or ("tokens" if match["suffix"] else "iterations")
    return Amount(int(amount), spelled)


def shortened(amount: int, digits: int = 4) -> str:
    """An amount for people, of so many digits: `49.99B`."""
    factor, suffix = max(
        (factor, suffix) for suffix, factor in SUFFIXES.items() if amount >= factor or factor == 1
    )
    return f"{amount / factor:.{digits}g}{suffix}"


def in_bytes(size: float) -> str:
    """`14.2 TB`: a size for people, in powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _tokens(written: Any) -> Any:
    if not isinstance(written, str):
        return written
    amount, unit = read_amount(written, "tokens")
    if unit != "tokens":
        raise ValueError(f"{written!r} are {unit}, and no tokens")
    return amount


Tokens = Annotated[int, BeforeValidator(_tokens), Field(gt=0)]
"""Tokens; in YAML a number, or `2B`."""


# Sizes

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGTP]?)(i?)B?")
_POWERS = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


def _bytes(written: Any) -> Any:
    if not isinstance(written, str):
        return written
    match = _SIZE.fullmatch(written.strip())
    if match is None:
        raise ValueError(f"{written!r} is not a size: write 500GB, 15TB or 1.5TiB")
    number, unit, binary = match.groups()
    return round(float(number) * (1024 if binary else 1000) ** _POWERS[unit])


Bytes = Annotated[int, BeforeValidator(_bytes), Field(gt=0)]
"""Bytes; in YAML a number, or `15TB` (powers of 1000), `15TiB` (of 1024)."""
