"""Repeats of equal settings: `repeats: 3`, with seeds that differ where the backend has one."""

from collections.abc import Mapping
from typing import Any

from autoexp.backends.registry import backend_class
from autoexp.dotted import flat
from autoexp.errors import BadInput

REPEAT = "repeat"
"""The name of a repeat's number among the settings of its point."""
MOST_REPEATS = 1000
_SEED = 1234
"""Of the first repeat, where nobody sets it: Megatron's own default, and the demo's."""


def repeats_of(values: Mapping[str, Any]) -> int:
    """How often each point runs; 1 where it is no such number, which its model refuses."""
    found = values.get("repeats", 1)
    return int(found) if isinstance(found, int) and 1 <= found <= MOST_REPEATS else 1


def seed_key(values: Mapping[str, Any]) -> str | None:
    """The key of the seed of an experiment's trainer; None where it has none."""
    backend = values.get("backend")
    kind = backend_class(backend.get("kind")) if isinstance(backend, Mapping) else None
    if kind is None or not isinstance(backend, Mapping):
        return None
    key = kind.seed_key(backend)
    return None if key is None else f"backend.{key}"


def settings_of_repeat(values: Mapping[str, Any], number: int) -> dict[str, Any]:
    """What tells a repeat from the others, from 1; raises BadInput for a seed that is no number."""
    key = seed_key(values)
    if key is None:
        return {REPEAT: number}
    known = flat(values)
    first = next((known[k] for k in (key, "backend.args.seed") if known.get(k) is not None), _SEED)
    if not isinstance(first, int):
        raise BadInput(f"repeats: {key} is {first!r}, and no number that others could follow")
    return {REPEAT: number, key: int(first) + number - 1}


def without_repeat(settings: Mapping[str, Any], backend: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that all repeats of a point share."""
    if REPEAT not in settings:
        return dict(settings)
    own = (REPEAT, seed_key({"backend": backend}))
    return {key: value for key, value in settings.items() if key not in own}
