"""Numbers as trainers print them."""

import math
import re

_AROUND = b" \t,;:|()[]{}'\""


_GROUPED = re.compile(rb"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d*)?")


_THOUSANDS = {b"k": 1e3, b"K": 1e3, b"M": 1e6, b"G": 1e9, b"B": 1e9, b"T": 1e12}


_SURELY_EXACT = 16  # digits: fewer are below MOST_ITERATIONS


def number(text: bytes) -> float | None:
    """Parse a number as trainers print it: `2.34,`, `1,234.5`, `3.2e+4`, `28.2K`, `nan`; else None.

    As Python reads it, it may be infinite.
    """
    try:
        return float(text)
    except ValueError:
        text = text.strip(_AROUND)
    scale = _THOUSANDS.get(text[-1:], 1.0)
    digits = text if scale == 1.0 else text[:-1]
    if _GROUPED.fullmatch(digits):
        digits = digits.replace(b",", b"")
    try:
        return float(digits) * scale
    except ValueError:
        return None


def whole(text: bytes) -> int | None:
    """Parse an exact whole number, `1,000` and `3.2e+4` too; None where it is not one.

    `28.2K` is a rounded one. Nor is it one that no iteration can have: below 0, or huge.
    """
    if len(text) < _SURELY_EXACT and text.isdigit():
        return int(text)
    text = text.strip(_AROUND)
    value = number(text)
    if value is None or text[-1:] in _THOUSANDS or not 0 <= value < MOST_ITERATIONS:
        return None
    return int(value) if value.is_integer() else None


def is_number(text: str) -> bool:
    """Whether Python reads the text as a number, `1e3` and `nan` too."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def finite(value: float | None) -> float | None:
    """A number for metrics: None unless finite."""
    return value if value is not None and math.isfinite(value) else None


MOST_ITERATIONS = 1 << 53
"""Below it a float counts exactly; a step number that is not below it is not a step number."""
