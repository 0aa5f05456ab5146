"""Plain values of a configuration: nested mappings, and their dotted keys."""

import copy
from collections.abc import Mapping
from typing import Any

from autoexp.errors import BadInput


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted key; lists stay values."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        else:
            found[name] = value
    return found


def escaped(value: Any) -> Any:
    """Text that looks like an interpolation stays text when it is composed again."""
    if isinstance(value, dict):
        return {key: escaped(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [escaped(inner) for inner in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value


def set_value(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key; raises BadInput where a part of it holds a value already."""
    *path, last = key.split(".")
    node: Any = values
    for part in path:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise BadInput(f"{key}: {part} holds a value, and no keys")
    node[last] = copy.deepcopy(value)
