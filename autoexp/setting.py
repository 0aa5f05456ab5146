"""Values that are set in a configuration after it was composed."""

from collections.abc import Callable, Mapping
from typing import Any

from autoexp.errors import BadInput


def setting(changes: Mapping[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """For `fill_in`: set values by dotted key, as data in which nothing is interpolated."""

    def fill_in(values: dict[str, Any]) -> dict[str, Any]:
        for key, value in changes.items():
            *path, last = key.split(".")
            node = values
            for part in path:
                node = node.setdefault(part, {})
                if not isinstance(node, dict):
                    raise BadInput(f"{key}: {part} holds a value, and no keys")
            node[last] = value
        return values

    return fill_in
