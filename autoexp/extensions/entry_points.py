"""Entry points by which packages bring trainers, conditions, actions and schedulers."""

import warnings
from collections.abc import Callable, Collection
from importlib.metadata import EntryPoint, entry_points
from typing import Any, get_args

from pydantic import BaseModel

BACKENDS = "autoexp.backends"
CONDITIONS = "autoexp.conditions"
ACTIONS = "autoexp.actions"
SCHEDULERS = "autoexp.schedulers"

Names = Callable[[type[BaseModel]], tuple[str, ...]]


def kinds(model: type[BaseModel]) -> tuple[str, ...]:
    """The values of a model's `kind`."""
    field = model.model_fields.get("kind")
    return () if field is None else get_args(field.annotation)


def only_field(model: type[BaseModel]) -> tuple[str, ...]:
    """The name of a model's only field."""
    fields = tuple(model.model_fields)
    return fields if len(fields) == 1 else ()


def installed(group: str, base: Any, names: Names, taken: Collection[str]) -> tuple[type[Any], ...]:
    """The classes that packages bring; one that cannot be used is a warning, and left out.

    `names` are those by which a configuration chooses a class, and `taken` those of our own.
    """
    found: list[type[Any]] = []
    known = set(taken)
    for entry in sorted(entry_points(group=group), key=lambda entry: entry.name):
        problem, model = _loaded(entry, base, names)
        if model is not None and (twice := known & set(names(model))):
            problem, model = f"there is one called `{min(twice)}` already", None
        if model is None:
            warnings.warn(f"{group}: {entry.name} = {entry.value}: {problem}", stacklevel=2)
            continue
        known |= set(names(model))
        found.append(model)
    return tuple(found)


def _loaded(entry: EntryPoint, base: Any, names: Names) -> tuple[str, type[Any] | None]:
    try:
        model: Any = entry.load()
    except Exception as error:  # whatever a package's import raises
        return f"cannot be imported ({type(error).__name__}: {error})", None
    if not isinstance(model, type) or not issubclass(model, base):
        return f"is no subclass of {base.__module__}.{base.__name__}", None
    if missing := getattr(model, "__abstractmethods__", None):
        return f"lacks `{min(missing)}`", None
    if not names(model):
        what = "one field alone" if names is only_field else "a `kind: Literal['…'] = '…'`"
        return f"has to have {what}", None
    return "", model
