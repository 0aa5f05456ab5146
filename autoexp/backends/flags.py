"""From a trainer's arguments in YAML to words of a command line."""

from collections.abc import Iterator, Mapping
from typing import Any

Argument = bool | int | float | str | tuple[bool | int | float | str, ...] | None


def flags(arguments: Mapping[str, Any]) -> Iterator[str]:
    """`--name value` of each argument; true is a bare flag, None and false are left out."""
    for name, value in arguments.items():
        flag = f"--{name.replace('_', '-')}"
        if value is None or value is False:
            continue
        yield flag
        if isinstance(value, tuple | list):
            yield from map(word, value)
        elif value is not True:
            yield word(value)


def word(value: bool | int | float | str) -> str:
    """One value as a trainer reads it: 3e-4 as 0.0003, true as true."""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else str(value)
