"""Converts a trainer's arguments in YAML to a command line."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from autoexp.redaction import looks_secret

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


def refuse_names(
    model: str,
    given: Mapping[str, object],
    *,
    ours: Mapping[str, str],
    known: Callable[[], Collection[str]] | None = None,
    at: tuple[str, ...] = (),
) -> None:
    """Refuse arguments that autoexp sets itself, that look secret, or that nobody knows.

    ``known` is called while a user's configuration is composed; recorded ones were checked then.
    Raises ValidationError, with the path of each.
    """
    errors = []
    names = known() if known is not None and given else None
    for name in given:
        reason: PydanticCustomError | None = None
        if name in ours:
            reason = PydanticCustomError("ours", "set by autoexp ({why})", {"why": ours[name]})
        elif looks_secret(name):
            reason = PydanticCustomError(
                "secret", "looks like a secret, which no configuration may hold: export it instead"
            )
        elif names is not None and name not in names:
            known_names = {"known": sorted(names)}
            reason = PydanticCustomError("extra_forbidden", "no such argument", known_names)
        if reason is not None:
            errors.append(InitErrorDetails(type=reason, loc=(*at, name), input=None))
    if errors:
        raise ValidationError.from_exception_data(model, errors)
