"""From where a validation failed to the key as it is written, and the names valid there."""

from collections.abc import Sequence
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel

_SCALARS = ("str", "int", "float", "bool")


class Place(NamedTuple):
    """A key of the configuration."""

    path: list[str]
    """As it is written: without the names of a union's members, which pydantic inserts."""
    beside: list[str]
    """Names that are valid where the last part stands."""


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
    """The values that tell a member of a union from the others."""
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
