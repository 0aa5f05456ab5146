"""Durations as written in YAML: `90`, `30s`, `10m`, `2h`, `1d`."""

import re
from typing import Annotated, Any

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
