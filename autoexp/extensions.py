"""What installed packages add by entry points: trainers, conditions, actions, schedulers.

What they derive their classes from stands here, or in a module that loads no package.
"""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel

from autoexp.templates import Templated

BACKENDS = "autoexp.backends"
CONDITIONS = "autoexp.conditions"
ACTIONS = "autoexp.actions"
SCHEDULERS = "autoexp.schedulers"

Names = Callable[[type[BaseModel]], tuple[str, ...]]


class Situation(NamedTuple):
    """What a condition may look at, taken at one moment."""

    now: datetime
    asked_at: datetime
    """When the rule's event happened."""
    acted_at: datetime | None
    """When the rule last acted on this job."""
    values: Mapping[str, str]
    """Values of the event and its job by their names in templates: data, which may be anything."""
    states: Mapping[str, str]
    """States of all jobs by name, in SLURM's spelling."""
    verdicts: Mapping[str, str | None]
    attempts: int
    """Attempts that the job has made."""
    directory: Path
    """The session's directory."""


class Never(Exception):
    """Raised by a condition that will never hold, with the reason."""


class OwnCondition(Templated):
    """A condition of a package: one field, whose name is its key in a rule."""

    @abstractmethod
    def waits_for(self, situation: Situation) -> str | None:
        """What it waits for, in words; None: it holds. Raises Never where it never will.

        Called every tick in a thread, until the action's `within` is over. It changes nothing, and
        the text stays the same while nothing changes.
        """


class OwnAction(Templated):
    """An action of a package: `kind: Literal["notify"] = "notify"` is its key in a rule."""

    kind: str

    @abstractmethod
    def run(self, values: Mapping[str, str], session: Path) -> str | None:
        """Do it, once for each event, in a thread; returns what came of it, for the records.

        A kill may have it run again. What it raises becomes the action's reason. `values` are
        those of the event, as data: they may be anything.
        """


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
