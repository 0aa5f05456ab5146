"""Composing an experiment that may name Prefect blocks."""

from collections.abc import Callable, Sequence
from typing import Any

from autoexp.config import compose as core
from autoexp.config.compose import Composed

Values = dict[str, Any]


def compose(config: str | None = None, overrides: Sequence[str] = ()) -> Composed:
    """As the core composes, with `{block: NAME}` replaced by what Prefect has under the name."""
    return core.compose(config, overrides, filling_in())


def filling_in() -> Callable[[Values], Values]:
    """Replaces the names of blocks, where there are any; asks Prefect once for each."""
    known: dict[tuple[str, str], Any] = {}

    def fill_in(values: Values) -> Values:
        if not any(isinstance(value, dict) and "block" in value for value in values.values()):
            return values
        # Prefect takes seconds to import, and is asked only by experiments that name a block.
        from autoexp.blocks import naming

        def load(key: str, name: str) -> Any:
            # Every point of a sweep names the same block.
            if (key, name) not in known:
                known[key, name] = naming.load_block(key, name)
            return known[key, name]

        return naming.fill_in(values, load)

    return fill_in
