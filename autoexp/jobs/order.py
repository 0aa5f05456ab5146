"""Parent-child order of jobs, for display."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autoexp.jobs.spec import JobSpec


def in_order(specs: Mapping[str, "JobSpec"], known: Iterable[str]) -> list[str]:
    """Names with each training first, then its descendants; cooldowns by branch point.

    Trainings stand in the order in which they were added to the session, given by `known`.
    """
    places = {name: place for place, name in enumerate(known)}
    names = sorted(specs, key=lambda name: places.get(name, len(places)))
    return [name for name, _ in walk([specs[name] for name in names])]


def walk(specs: Iterable["JobSpec"]) -> Iterator[tuple[str, int]]:
    """Each job's name and its depth below its root."""
    specs = list(specs)
    names = {spec.name for spec in specs}
    children: dict[str | None, list[JobSpec]] = {}
    for spec in specs:
        parent = spec.parent if spec.parent in names and spec.parent != spec.name else None
        children.setdefault(parent, []).append(spec)
    for below in children.values():
        # Stable: what has no branch point stays in its order, behind the cooldowns.
        below.sort(key=_place)
    stack = [(spec, 0) for spec in reversed(children.get(None, []))]
    while stack:
        spec, depth = stack.pop()
        yield spec.name, depth
        stack += [(child, depth + 1) for child in reversed(children.get(spec.name, []))]


def _place(spec: "JobSpec") -> tuple[bool, int]:
    if spec.parent is None:
        return False, 0
    return spec.starts_at is None, spec.starts_at or 0
