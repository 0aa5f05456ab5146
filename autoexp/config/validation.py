"""What is wrong with a configuration: the key, where its value came from, the nearest name."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Override
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from autoexp import fields
from autoexp.config.experiment import Experiment


class Origins:
    """Says where the value of a key came from."""

    def __init__(
        self,
        directories: Sequence[Path],
        name: str,
        choices: dict[str, str],
        overrides: Sequence[Override],
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
    """The line of a file in which a key stands; None where it does not stand there."""
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
    """The keys of a mapping or the positions of a sequence, their lines and what stands there."""
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

    `below` is where the validated part stands in the experiment.
    """
    found = error.errors()
    for details in found:
        details["loc"] = (*below, *details["loc"])
    lines = [_problem(details, origins) for details in found]
    return "\n".join(dict.fromkeys(lines))


def _problem(details: ErrorDetails, origins: Origins) -> str:
    found = fields.walk(Experiment, details["loc"])
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


def nearest(name: str, names: Any) -> str:
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"; did you mean `{close[0]}`?" if close else ""


def find_file(directories: Sequence[Path], name: str) -> Path | None:
    """The file that a name means: `demo`, or `backend/demo`."""
    files = (d / f"{name}{suffix}" for d in directories for suffix in (".yaml", ".yml"))
    return next((file for file in files if file.is_file()), None)
