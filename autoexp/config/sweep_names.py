"""Names of sweep points: made of their values, unique, valid for files and schedulers."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from autoexp.config.sweep import Settings
from autoexp.config.sweep_expand import short_names
from autoexp.dotted import flat
from autoexp.errors import BadInput
from autoexp.templates import fill, refuse_unknown

LONGEST = 40
"""Longest name of a point in characters: its cooldowns and stages append to it."""


def name_points(
    project: str,
    template: str | None,
    points: Sequence[Settings],
    known: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Name each point, after the project; `known` are the names that a template may use.

    Raises BadInput when a template gives one name to two points, or one that is too long.
    """
    if template is not None:
        names = [f"{project}-{_point_name(template, values)}" for values in known]
        _refuse_doubles(template, names)
        return names
    return [f"{project}-{name}" for name in derived_names(points, LONGEST - len(project) - 1)]


def _point_name(template: str, values: Mapping[str, Any]) -> str:
    try:
        return filled_name(template, flat(values))
    except ValueError as error:
        raise BadInput(f"sweep.name: {error}") from error


def filled_name(template: str, values: Mapping[str, Any]) -> str:
    """A name from a template; raises ValueError for a name in it without a value."""
    texts = {key: as_word(value) for key, value in values.items()}
    refuse_unknown(iter([template]), texts)
    return _slug(fill(template, texts))


def _refuse_doubles(template: str, names: Sequence[str]) -> None:
    first: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if name in first:
            raise BadInput(
                f"sweep.name: {template!r} gives points {first[name]} and {number} one name, {name}"
            )
        first[name] = number


def derived_names(points: Sequence[Settings], room: int) -> list[str]:
    """Name each point by all values that differ, with their keys; shortened where too long."""
    differing = differing_keys(points)
    short = short_names(differing)
    ways = [short, {key: _initials(name) for key, name in short.items()}]
    for names in ways:
        found = [
            _slug("-".join(f"{names[k]}{as_word(p[k])}" for k in differing if k in p))
            for p in points
        ]
        if all(0 < len(name) <= room for name in found):
            break
    else:
        found = [""] * len(points)
    width = len(str(len(points)))
    counts = Counter(found)
    return [
        name if name and counts[name] == 1 else _numbered(name, number, width, room)
        for number, name in enumerate(found, start=1)
    ]


def _numbered(name: str, number: int, width: int, room: int) -> str:
    mark = f"p{number:0{width}}"
    return f"{name[: max(0, room - len(mark) - 1)]}-{mark}".lstrip("-")


def differing_keys(points: Sequence[Settings]) -> list[str]:
    """The keys whose values are not the same in all points."""
    keys = dict.fromkeys(key for point in points for key in point)
    return [k for k in keys if len({repr(point.get(k, _MISSING)) for point in points}) > 1]


_MISSING = object()


def _initials(name: str) -> str:
    """`gbs` for `global_batch_size`; one word stays as it is."""
    words = re.split(r"[._]", name)
    return name if len(words) == 1 else "".join(word[:1] for word in words)


def as_word(value: Any) -> str:
    """A value as a part of a name."""
    if isinstance(value, bool) or value is None:
        return {True: "on", False: "off", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return "-".join(f"{key}{as_word(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return "-".join(as_word(inner) for inner in value)
    return str(value)


def _slug(text: str) -> str:
    return re.sub(r"-{2,}", "-", re.sub(r"[^A-Za-z0-9._-]+", "-", text)).strip("-")
