"""Messages for invalid configurations: the key, the source of its value, the nearest name."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from autoexp.config.experiment import Experiment
from autoexp.model import nearest

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

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


class Origins:
    """The sources of values: file and line, override, or sweep."""

    def __init__(
        self,
        directories: Sequence[Path],
        name: str,
        choices: dict[str, str],
        overrides: "Sequence[Override]",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._directories = directories
        self._name = name
        self._choices = choices
        self._overrides = overrides
        self._settings = settings or {}

    def with_settings(self, settings: Mapping[str, Any]) -> "Origins":
        """The same for one point of a sweep."""
        return Origins(self._directories, self._name, self._choices, self._overrides, settings)

    def of(self, location: Sequence[str]) -> str:
        key = ".".join(location)
        for swept, value in self._settings.items():
            if f"{key}.".startswith(f"{swept}."):
                return f"sweep `{swept}={value}`"
        for override in reversed(self._overrides):
            if key == override.key_or_group or key.startswith(f"{override.key_or_group}."):
                return f"override `{override.input_line}`"
        primary = find_file(self._directories, self._name)
        choice = self._choices.get(location[0]) if location else None
        group = find_file(self._directories, f"{location[0]}/{choice}") if choice else None
        for file, path in ((primary, location), (group, location[1:]), (group, location)):
            if file is not None and (line := _line_of(file, path)) is not None:
                return f"{file}, line {line}"
        return str(group or primary or self._name)


def _line_of(file: Path, location: Sequence[str]) -> int | None:
    """The line of a key in a file; None where it is not in the file."""
    try:
        node: Any = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.CBaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    line = None
    for part in location:
        place = next(((at, inner) for name, at, inner in _inside(node) if name == part), None)
        if place is None:
            return None
        line, node = place
    return line


def _inside(node: Any) -> Iterator[tuple[str, int, Any]]:
    """The keys of a mapping or the positions of a sequence, with their lines and nodes."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield str(key.value), key.start_mark.line + 1, value
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield str(index), item.start_mark.line + 1, item


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


def find_file(directories: Sequence[Path], name: str) -> Path | None:
    """The file that a name means: `demo`, or `backend/demo`."""
    files = (d / f"{name}{suffix}" for d in directories for suffix in (".yaml", ".yml"))
    return next((file for file in files if file.is_file()), None)
