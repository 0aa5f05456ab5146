"""Parent-child order of jobs, for display."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from autoexp.jobs.spec import JobSpec


class Place(NamedTuple):
    """What decides a job's place among the others."""

    name: str
    parent: str | None
    branch_iteration: int | None


def place_of(spec: "JobSpec") -> Place:
    """The place of a job."""
    return Place(spec.name, spec.parent, spec.branch.iteration if spec.branch else None)


def in_order(places: Mapping[str, Place], known: Iterable[str]) -> list[str]:
    """Names with each training first, then its descendants; cooldowns by branch point.

    Trainings stand in the order in which they were added to the session, given by `known`.
    """
    numbers = {name: number for number, name in enumerate(known)}
    names = sorted(places, key=lambda name: numbers.get(name, len(numbers)))
    return [name for name, _ in walk([places[name] for name in names])]


def walk(places: Iterable[Place]) -> Iterator[tuple[str, int]]:
    """Each job's name and its depth below its root."""
    places = list(places)
    names = {place.name for place in places}
    children: dict[str | None, list[Place]] = {}
    for place in places:
        has_parent = place.parent in names and place.parent != place.name
        children.setdefault(place.parent if has_parent else None, []).append(place)
    for below in children.values():
        # Stable: what has no branch point stays in its order, behind the cooldowns.
        below.sort(key=_among_siblings)
    stack = [(place, 0) for place in reversed(children.get(None, []))]
    while stack:
        place, depth = stack.pop()
        yield place.name, depth
        stack += [(child, depth + 1) for child in reversed(children.get(place.name, []))]


def _among_siblings(place: Place) -> tuple[bool, int]:
    if place.parent is None:
        return False, 0
    return place.branch_iteration is None, place.branch_iteration or 0
