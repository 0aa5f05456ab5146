"""Composing an experiment that may name Prefect blocks."""

from collections.abc import Sequence
from typing import Any

from autoexp import compose as core
from autoexp.compose import Composed


def compose(config: str | None = None, overrides: Sequence[str] = ()) -> Composed:
    """As the core composes, with `{block: NAME}` replaced by what Prefect has under the name."""
    return core.compose(config, overrides, fill_in)


def fill_in(values: dict[str, Any]) -> dict[str, Any]:
    """Replace the names of blocks, where there are any."""
    if not any(isinstance(value, dict) and "block" in value for value in values.values()):
        return values
    # Prefect takes seconds to import, and is asked only by experiments that name a block.
    from blocks import naming

    return naming.fill_in(values)
