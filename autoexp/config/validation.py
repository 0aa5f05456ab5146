"""Messages for invalid configurations, and where each value comes from: file, override, sweep."""

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from autoexp import sinks
from autoexp.config.experiment import Experiment
from autoexp.dotted import dump
from autoexp.model import nearest
from autoexp.storage import places

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

Location = tuple[str, ...]
"""The parts of a dotted key."""
_WIDE = 56
_CONFIGS = "configs"
_PATHS = (
    ("project", "output_root"),
    ("nodes", "avoid_file"),
    ("backend", "source"),
    ("backend", "script"),
    ("backend", "python"),
    ("backend", "args", "job", "config_file"),
)
"""The keys whose values are paths on this machine."""
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


# Messages


def validation_message(
    error: ValidationError, origins: "Origins", below: tuple[str, ...] = ()
) -> str:
    """One line per problem: path, what is wrong, the nearest valid name, where it came from.

    ``below` is the place of the validated part in the experiment.
    """
    found = error.errors()
    for details in found:
        details["loc"] = (*below, *details["loc"])
    lines = [_problem(details, origins) for details in found]
    return "\n".join(dict.fromkeys(lines))


def _problem(details: ErrorDetails, origins: "Origins") -> str:
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


# Files


def find_file(directories: Sequence[Path], name: str) -> Path | None:
    """The file that a name means: `demo`, or `backend/demo`."""
    files = (d / f"{name}{suffix}" for d in directories for suffix in (".yaml", ".yml"))
    return next((file for file in files if file.is_file()), None)


def defaults_of(text: str) -> list[Any]:
    """The defaults list of a configuration file; empty for one that cannot be read."""
    try:
        content = yaml.load(text, Loader=yaml.CBaseLoader)
    except yaml.YAMLError:
        return []
    found = content.get("defaults") if isinstance(content, dict) else None
    return found if isinstance(found, list) else []


def references(entry: Any, group: str) -> Iterator[str]:
    """The target of an entry of a defaults list: a file, or all files of a group."""
    names = entry if isinstance(entry, dict) else {entry: None}
    for written, choice in names.items():
        name = str(written).split()[-1:]  # behind `optional` and `override`
        path = name[0].partition("@")[0] if name else ""
        path = path.lstrip("/") if path.startswith("/") or not group else f"{group}/{path}"
        if "${" in path:
            path = path.partition("${")[0].rpartition("/")[0]
            yield from [f"{path}/*"] if path else []
        elif path and path != "_self_":
            yield path if choice is None else f"{path}/*"


class Origins:
    """The sources of values: file and line, override, or sweep."""

    def __init__(
        self,
        directories: Sequence[Path],
        name: str,
        choices: dict[str, str],
        overrides: "Sequence[Override]",
        chosen_by: "Mapping[str, Override] | None" = None,
        settings: Mapping[str, Any] | None = None,
        derived: Mapping[str, Any] | None = None,
    ) -> None:
        """`choices` are files by group; `chosen_by` are the overrides that chose some of them."""
        self._directories = directories
        self._name = name
        self._choices = choices
        self._overrides = overrides
        self._chosen_by = chosen_by or {}
        self._settings = settings or {}
        self._derived = derived or {}
        self._nodes: dict[Path, Any] = {}

    def chosen(self, group: str) -> str:
        """The file that was chosen of a group, such as `lumi` of `slurm`; empty: none."""
        return self._choices.get(group) or ""

    def with_settings(self, settings: Mapping[str, Any]) -> "Origins":
        """The same for one point of a sweep."""
        return Origins(
            *(self._directories, self._name, self._choices, self._overrides),
            *(self._chosen_by, settings, self._derived),
        )

    def with_derived(self, formulas: Mapping[str, Any]) -> "Origins":
        """The same where some keys follow from others."""
        return Origins(
            *(self._directories, self._name, self._choices, self._overrides),
            *(self._chosen_by, self._settings, formulas),
        )

    def of(self, location: Sequence[str]) -> str:
        """Where a value comes from, in words; of one that is missing, where it would stand."""
        if (setter := self._setter(".".join(location))) is not None:
            return setter
        file, line, by = self._place(location)
        return f"{file or self._name}{'' if line is None else f', line {line}'}{by}"

    def project_of(self, location: Sequence[str]) -> Path:
        """The directory that a relative path of this key is below.

        That is the project of the file that has it, in any directory: where its `configs/` is, or
        the file itself. What is said on the command line is below the working directory, and so
        is what autoexp's own files say.
        """
        file, line, _ = self._place(location)
        if self._setter(".".join(location)) is not None or file is None or line is None:
            return Path.cwd()
        shipped = places.SHIPPED.resolve()
        folders = [x for x in self._directories if x != shipped and file.is_relative_to(x)]
        if not folders:
            return Path.cwd()
        return folders[0].parent if folders[0].name == _CONFIGS else folders[0]

    def _setter(self, key: str) -> str | None:
        """The formula, the sweep or the override that sets a key, if one does."""
        if key in self._derived:
            return f"derived: `{self._derived[key]}`"
        for swept, value in self._settings.items():
            if f"{key}.".startswith(f"{swept}."):
                return f"sweep `{swept}={value}`"
        for override in reversed(self._overrides):
            if key == override.key_or_group or key.startswith(f"{override.key_or_group}."):
                return f"override `{override.input_line}`"
        return None

    def _place(self, location: Sequence[str]) -> tuple[Path | None, int | None, str]:
        """The file and line of a value, and the override that chose this file, in words."""
        for file in self._files(self._name):
            if (line := self._line_of(file, location)) is not None:
                return file, line, ""
        group = location[0] if location else ""
        choice = self._choices.get(group)
        first = find_file(self._directories, f"{group}/{choice}") if choice else None
        if first is None:
            return find_file(self._directories, self._name), None, ""
        chooser = self._chosen_by.get(group)
        by = "" if chooser is None else f", chosen by `{chooser.input_line}`"
        for file in self._files(f"{group}/{choice}"):
            for path in (location[1:], location):
                if path and (line := self._line_of(file, path)) is not None:
                    return file, line, by
        return first, None, by

    def _files(self, reference: str) -> Iterator[Path]:
        """The file of a name, and those of its defaults that are of the same group: best first."""
        group, waiting, seen = reference.rpartition("/")[0], [reference], set[str]()
        while waiting:
            name = waiting.pop()
            file = find_file(self._directories, name)
            if file is None or name in seen or name.rpartition("/")[0] != group:
                continue
            seen.add(name)
            yield file
            with suppress(OSError, UnicodeDecodeError):
                for entry in defaults_of(file.read_text(encoding="utf-8")):
                    waiting += references(entry, group)

    def _line_of(self, file: Path, location: Sequence[str]) -> int | None:
        """The line of a key in a file; None where it is not in the file."""
        if file not in self._nodes:
            self._nodes[file] = _node_of(file)
        node, line = self._nodes[file], None
        for part in location:
            place = next(((at, inner) for name, at, inner in _inside(node) if name == part), None)
            if place is None:
                return None
            line, node = place
        return line


def _node_of(file: Path) -> Any:
    try:
        return yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.CBaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None


def _inside(node: Any) -> Iterator[tuple[str, int, Any]]:
    """The keys of a mapping or the positions of a sequence, with their lines and nodes."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield str(key.value), key.start_mark.line + 1, value
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield str(index), item.start_mark.line + 1, item


def with_paths(values: dict[str, Any], origins: Origins) -> dict[str, Any]:
    """The same values, with relative paths below the project of the file that has them.

    So they lead to the same place wherever autoexp runs.
    """
    for location in _PATHS:
        node: Any = values
        for part in location[:-1]:
            node = node.get(part) if isinstance(node, dict) else None
        text = node.get(location[-1]) if isinstance(node, dict) else None
        if isinstance(text, str) and _is_relative(text, location[-1]):
            node[location[-1]] = str(origins.project_of(location) / text)
    return values


def _is_relative(text: str, key: str) -> bool:
    # A program without a slash is looked for on PATH; a URL is shown as it is to what refuses it.
    is_path = bool(text) and "://" not in text and (key != "python" or "/" in text)
    return is_path and not text.startswith(("~", "$")) and not Path(text).is_absolute()


# Shown


def annotated(values: Mapping[str, Any], origins: Origins, defaults: Container[Location]) -> str:
    """Values as YAML, behind each of them in a comment where it comes from.

    ``defaults`` are the keys that nobody has set.
    """
    text = dump(values)
    lines = text.splitlines()
    found = list(_places(yaml.compose(text, Loader=yaml.CBaseLoader), ()))
    width = min(_WIDE, max((len(lines[line]) for line, _ in found), default=0))
    for line, location in found:
        origin = "default" if location in defaults else _shortened(origins.of(location))
        lines[line] = f"{lines[line]:<{width}}  # {sinks.line(origin)}"
    return "\n".join(lines)


def _places(node: Any, above: Location) -> Iterator[tuple[int, Location]]:
    """The line in which each value ends, or a list begins."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        location = (*above, str(key.value))
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _places(value, location)
        elif isinstance(value, yaml.ScalarNode):
            yield value.end_mark.line - (value.end_mark.column == 0), location
        else:
            yield key.start_mark.line, location


def _shortened(origin: str) -> str:
    """An origin as one reads it: files of autoexp, and of the directory where one is."""
    return origin.replace(f"{places.SHIPPED.resolve()}/", "autoexp's ").replace(
        f"{Path.cwd()}/", ""
    )
