"""Messages for invalid configurations: the key, the source of its value, the nearest name."""

from collections.abc import Sequence
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from autoexp.config.experiment import Experiment
from autoexp.config.origins import Origins
from autoexp.model import nearest

_SCALARS = ("str", "int", "float", "bool")


class Place(NamedTuple):
    """A key of the configuration."""

    path: list[str]
    """As it is written: without the names of a union's members, which pydantic inserts."""
    beside: list[str]
    """Valid names in place of the last part."""


def walk(model: type[BaseModel], location: Sequence[int | str]) -> Place:
    """Follow the location of an error from `model` down."""
    models: list[type[BaseModel]] = [model]
    path: list[str] = []
    beside, named_by_user = _names(models), False
    for part in map(str, location):
        chosen = [found for found in models if part in _kinds(found)]
        if len(models) > 1 and chosen:
            models = chosen  # the tag of a union, which nobody wrote
            continue
        if not models and part in _SCALARS:
            continue
        path.append(part)
        if part.isdigit():
            continue
        if named_by_user:
            named_by_user = False  # a key of a mapping, as the name of a rule
            continue
        beside = _names(models)
        annotations = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        models = [found for annotation in annotations for found in _models_in(annotation)]
        named_by_user = any(get_origin(annotation) is dict for annotation in annotations)
    return Place(path, beside)


def _kinds(model: type[BaseModel]) -> tuple[str, ...]:
    """The values that distinguish a member of a union."""
    field = model.model_fields.get("kind")
    return get_args(field.annotation) if field is not None else ()


def _names(models: Sequence[type[BaseModel]]) -> list[str]:
    found: set[str] = set()
    for model in models:
        also_known = getattr(model, "also_known", frozenset)
        found |= set(model.model_fields) | also_known()
    return sorted(found)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for inner in get_args(annotation) for found in _models_in(inner)]


def validation_message(
    error: ValidationError, origins: Origins, below: tuple[str, ...] = ()
) -> str:
    """One line per problem: path, what is wrong, the nearest valid name, where it came from.

    ``below` is the place of the validated part in the experiment.
    """
    found = error.errors()
    for details in found:
        details["loc"] = (*below, *details["loc"])
    lines = [_problem(details, origins) for details in found]
    return "\n".join(dict.fromkeys(lines))


def _problem(details: ErrorDetails, origins: Origins) -> str:
    found = walk(Experiment, details["loc"])
    path = ".".join(found.path) or "experiment"
    origin = origins.of(found.path)
    if details["type"] == "extra_forbidden":
        names = {*found.beside, *details.get("ctx", {}).get("known", ())} - {found.path[-1]}
        return f"{path}: no such key{nearest(found.path[-1], names)} ({origin})"
    if details["type"] == "missing":
        return f"{path}: missing ({origin})"
    message = details["msg"].removeprefix("Value error, ")
    shown = details["input"]
    given = f", got {shown!r}" if isinstance(shown, str | int | float) else ""
    return f"{path}: {message}{given} ({origin})"
