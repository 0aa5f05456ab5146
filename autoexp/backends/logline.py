"""Reading a trainer's progress line by a pattern."""

import math
import re
from functools import lru_cache

from autoexp.backends.base import Progress

COLOURS = re.compile(rb"\x1b\[[0-9;]*m")
_GROUPS = ("iteration", "loss", "learning_rate", "seconds")


class LinePattern:
    """A regular expression with a group `iteration` and perhaps others."""

    def __init__(self, pattern: str) -> None:
        self._pattern = _compiled(pattern)

    def read(self, line: bytes) -> Progress | None:
        """What the line says; a loss that is no finite number is None."""
        match = self._pattern.search(COLOURS.sub(b"", line))
        if match is None:
            return None
        found = match.groupdict()
        return Progress(
            iteration=int(found["iteration"]),
            target=None,
            loss=_finite(found.get("loss")),
            learning_rate=_finite(found.get("learning_rate")),
            seconds_per_iteration=_finite(found.get("seconds")),
        )


@lru_cache
def _compiled(pattern: str) -> re.Pattern[bytes]:
    try:
        compiled = re.compile(pattern.encode())
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    groups = set(compiled.groupindex)
    if "iteration" not in groups:
        raise ValueError(f"{pattern!r} has no group `(?P<iteration>[0-9]+)`")
    if unknown := groups - set(_GROUPS):
        raise ValueError(f"group `{min(unknown)}`: there are {', '.join(_GROUPS)}")
    return compiled


def _finite(text: bytes | None) -> float | None:
    try:
        value = math.nan if text is None else float(text.replace(b",", b""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None
