"""Some of a sweep's points by number, as in `--subset 3,5-7`."""

import re

from autoexp.errors import BadInput

_PART = re.compile(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?")


def chosen(text: str, points: int) -> list[int]:
    """The numbers that a text names, ascending; raises BadInput beyond the last point."""
    numbers: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise BadInput(f"--subset {text}: {part.strip()!r} is neither `3` nor `5-7`")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= last <= points:
            raise BadInput(f"--subset {text}: {part.strip()} is not within 1-{points}")
        numbers |= set(range(first, last + 1))
    return sorted(numbers)
