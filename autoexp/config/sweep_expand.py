"""From a sweep to its points, as plain values. Pure: nothing is composed or validated here."""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from autoexp.config.expressions import ExpressionError, parse
from autoexp.config.sweep import Group, Settings
from autoexp.errors import BadInput

_PART = re.compile(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?")


def chosen(text: str, points: int) -> list[int]:
    """Parse a list of point numbers, ascending; raises BadInput beyond the last point."""
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


MOST = 10_000
"""Most points of a sweep: more are a mistake, as of a grid with one key too many."""

AllValues = Callable[[Settings], Mapping[str, Any]]
"""From a point's settings to all values that an expression may use."""


def expand(sweep: Group, all_values: AllValues = dict) -> list[Settings]:
    """Return the settings of each point, in the order of the file.

    The last key of a grid moves fastest. Raises BadInput for a filter that cannot be evaluated,
    and for a sweep without a point.
    """
    points = list(itertools.islice(_points(sweep, {}, all_values, "sweep"), MOST + 1))
    if len(points) > MOST:
        raise BadInput(f"sweep: more than {MOST} points")
    if not points:
        raise BadInput("sweep: no point is left; see `filter`")
    return points


def _points(group: Group, outer: Settings, all_values: AllValues, where: str) -> Iterator[Settings]:
    filters = [parse(text) for text in group.filter]
    shared = {**outer, **group.defaults}
    for own in _grid(group):
        for chosen in group.list or ({},):
            settings = {**shared, **own, **chosen}
            for point in _inner(group, settings, all_values, where):
                values = all_values(point) if filters else {}
                try:
                    if all(each.value(values) for each in filters):
                        yield point
                except ExpressionError as error:
                    raise BadInput(f"{where}.filter: {error}") from error


def _grid(group: Group) -> Iterator[Settings]:
    for combination in itertools.product(*group.grid.values()):
        yield dict(zip(group.grid, combination, strict=True))


def _inner(
    group: Group, settings: Settings, all_values: AllValues, where: str
) -> Iterable[Settings]:
    if not group.groups:
        yield settings
    for index, inner in enumerate(group.groups):
        yield from _points(inner, settings, all_values, f"{where}.groups.{index}")


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The shortest unique suffix of each key: `lr` for `backend.args.lr`."""
    names = {}
    for key in keys:
        parts = key.split(".")
        for length in range(1, len(parts) + 1):
            ending = ".".join(parts[-length:])
            if not any(other != key and f".{other}".endswith(f".{ending}") for other in keys):
                break
        names[key] = ending
    return names
