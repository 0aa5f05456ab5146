"""Text with names in braces, filled once and as data: `{checkpoint_path}`, `{{` for a brace.

A value is put in unchanged: it is not read again and not evaluated.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from autoexp.model import FrozenModel, nearest

_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


class Templated(FrozenModel):
    """A condition or an action, whose texts may be templates."""

    def templates(self) -> Iterator[str]:
        """The texts that are filled before use; an unknown name in them is refused at once."""
        yield from ()


def names_in(text: str) -> Iterator[str]:
    """The names that a text refers to; raises ValueError for an unmatched brace."""
    for part in _PART.finditer(text):
        if part[0] in "{}":
            raise ValueError(f"{text!r} has a single `{part[0]}`; write it twice to mean it")
        if part[1] is not None:
            yield part[1]


def divided(path: str, names: Collection[str]) -> tuple[str, str] | None:
    """A path's parts before the first that refers to one of the names, and the rest of it.

    None where no part does.
    """
    parts = path.split("/")
    for number, part in enumerate(parts):
        if not set(names).isdisjoint(names_in(part)):
            return "".join(f"{each}/" for each in parts[:number]), "/".join(parts[number:])
    return None


def fill(text: str, values: Mapping[str, str]) -> str:
    """The text with every name replaced by its value, in one pass; KeyError for an unknown name."""
    plain = {"{{": "{", "}}": "}"}
    return _PART.sub(lambda part: plain.get(part[0]) or values[part[1]], text)


def fill_tree(value: Any, values: Mapping[str, str]) -> Any:
    """Nested lists and mappings with every text filled; keys stay as they are."""
    if isinstance(value, str):
        return fill(value, values)
    if isinstance(value, Mapping):
        return {key: fill_tree(inner, values) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [fill_tree(inner, values) for inner in value]
    return value


def texts_in(value: Any) -> Iterator[str]:
    """The texts in nested lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from texts_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts_in(inner)


def refuse_unknown(texts: Iterator[str], known: Collection[str]) -> None:
    """Raise ValueError for the first name without a value."""
    for text in texts:
        for name in names_in(text):
            if name not in known:
                hint = nearest(name, known, braces=True)
                raise ValueError(
                    f"{text!r}: nothing here is called `{{{name}}}`{hint} "
                    f"There are: {', '.join(sorted(known))}"
                )
