"""Composes experiments that may name Prefect blocks."""

from collections.abc import Callable, Sequence
from typing import Any

from autoexp.config import compose as core
from autoexp.config.compose import Composed
from autoexp.errors import BadInput
from autoexp.session.find import session_path
from autoexp.session.from_session import compose_from, read_origin
from autoexp.session.session import Session

Values = dict[str, Any]


def compose(config: str | None = None, overrides: Sequence[str] = ()) -> Composed:
    """Compose as the core does, with `{block: NAME}` replaced by the block's settings."""
    return core.compose(config, overrides, filling_in())


def filling_in() -> Callable[[Values], Values]:
    """A `compose()` hook that replaces names of blocks; loads each from Prefect once."""
    known: dict[tuple[str, str], Any] = {}

    def fill_in(values: Values) -> Values:
        if not any(isinstance(value, dict) and "block" in value for value in values.values()):
            return values
        # Prefect takes seconds to import, and is needed only by experiments that name a block.
        from autoexp.blocks import naming

        def load(key: str, name: str) -> Any:
            # Every point of a sweep names the same block.
            if (key, name) not in known:
                known[key, name] = naming.load_block(key, name)
            return known[key, name]

        return naming.fill_in(values, load)

    return fill_in


def compose_words(words: list[str], origin: str | None = None) -> Composed:
    """Split the words into a configuration's name and overrides, and compose.

    `origin` is the value of `--from`, and replaces a configuration's name.
    """
    names = [word for word in words if "=" not in word and not word.startswith("~")]
    if len(names) > 1:
        raise BadInput(f"one configuration at a time, not {', '.join(names)}")
    overrides = [word for word in words if word not in names]
    if origin is not None:
        if names:
            raise BadInput(f"--from {origin} brings its own configuration: leave out {names[0]}")
        start = read_origin(origin)
        return compose_from(
            Session.load(session_path(start.session)), start, overrides, filling_in()
        )
    return compose(names[0] if names else None, overrides)
