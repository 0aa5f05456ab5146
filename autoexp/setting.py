"""Values that are set in a configuration after it was composed."""

from collections.abc import Callable, Mapping
from typing import Any

from autoexp.config.scalars import restored
from autoexp.dotted import set_value


def setting(changes: Mapping[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """For `fill_in`: set values by dotted key, as data in which nothing is interpolated."""

    def fill_in(values: dict[str, Any]) -> dict[str, Any]:
        for key, value in changes.items():
            set_value(values, key, restored(value))
        return values

    return fill_in
