"""From YAML and overrides to a validated experiment: Hydra composes, pydantic validates."""

import re
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from yaml import YAMLError

from autoexp import redaction, scalars
from autoexp.config.experiment import Experiment
from autoexp.config.search_path import (
    ConfigGroups,
    chosen_groups,
    locate,
    merged,
    with_site,
)
from autoexp.config.sweep import Sweep
from autoexp.config.sweep_names import differing_keys
from autoexp.config.sweep_points import Drawn, Point, Trees, draw, merged_sweep, some, swept
from autoexp.config.validation import Origins, find_file, validation_message, with_paths
from autoexp.config.values.derived import Underived, formulas_of, results_of, with_results
from autoexp.config.values.lengths import as_written
from autoexp.config.values.repeats import repeats_of
from autoexp.dotted import dump, escaped, set_value
from autoexp.errors import BadInput
from autoexp.model import COMPOSING, nearest


class Composed(NamedTuple):
    """An experiment and its sources, enough to compose it again."""

    experiment: Experiment
    config: str
    overrides: tuple[str, ...]
    resolved: str
    """YAML with every interpolation resolved."""
    unresolved: str
    """YAML as composed, interpolations kept."""
    points: tuple[Point, ...] = ()
    """The points of a sweep; empty without one."""
    origins: Origins | None = None
    """Where its values come from, where it was composed from files."""


def compose(
    config: str | None = None,
    overrides: Sequence[str] = (),
    fill_in: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> Composed:
    """Compose and validate an experiment.

    `config` is the name of a file in the configuration directories (`$AUTOEXP_CONFIGS`, else
    `configs/` in the working directory, then those that ship with autoexp), or the path of a YAML
    file. `overrides` are dotted, as in Hydra: `backend=megatron backend.args.train_iters=200`.
    `fill_in` gets the plain values before they are validated, and may replace some, as names of
    things that the core does not know.

    Raises BadInput with one message that names the key, where it came from and the nearest name.
    """
    paths, name = locate(config)
    overrides = with_site(overrides)
    try:
        read = _read(paths, name, overrides)
    except (HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise BadInput(_hydra_message(error, paths, name, overrides)) from error
    values, sweep = fill_in(read.values), read.sweep
    origins = read.origins.with_derived(formulas_of(values))
    _refuse_secrets({**values, "sweep": sweep.model_dump() if sweep else {}})
    points: tuple[Point, ...] = ()
    if sweep is None:
        values = with_results(values, _derived(values, origins))
        experiment = _validated(values, origins)
    else:
        points = _validated_points(read.drawn, fill_in, origins)
        of_all = {"project": points[0].experiment.project.model_copy(update={"name": read.project})}
        experiment = points[0].experiment.model_copy(update={**of_all, "sweep": sweep})
        with suppress(Underived):  # a sweep may set what it needs
            values = with_results(values, results_of(values))
        if sweep != Sweep():
            values = {**values, "sweep": sweep.model_dump(mode="json", exclude_defaults=True)}
    return Composed(
        experiment=experiment,
        config=name,
        overrides=tuple(overrides),
        resolved=dump(escaped(scalars.plain(values))),
        unresolved=read.unresolved,
        points=points,
        origins=origins,
    )


class _Read(NamedTuple):
    """The composed values, before anything but the sweep is validated."""

    values: dict[str, Any]
    unresolved: str
    origins: Origins
    project: str
    sweep: Sweep | None
    drawn: Sequence[Drawn]
    """The sweep's points; empty without a sweep."""


def _read(paths: Sequence[Path], name: str, overrides: Sequence[str]) -> _Read:
    groups = ConfigGroups(paths)
    parsed = _parsed(overrides, groups)
    several = swept(override for override, _ in parsed)
    single = [pair for pair in parsed if pair[0].key_or_group not in several]
    chosen = [override for override, _ in single if override.key_or_group not in groups]
    _refuse_no_names([override for override, _ in single], groups)
    named = {x.key_or_group for x, _ in parsed if x.key_or_group in groups}
    with (
        merged(paths, name, named) as directory,
        initialize_config_dir(str(directory), version_base="1.3"),
    ):
        listed = chosen_groups(directory, name)
        spelled = [_force(override, line, groups, listed) for override, line in single]

        def tree_of(choices: tuple[str, ...] = ()) -> DictConfig:
            return hydra_compose(name, [*spelled, *choices], return_hydra_config=True)

        tree = tree_of()
        by = {x.key_or_group: x for x, _ in single if x.key_or_group in groups}
        origins = Origins(paths, name, dict(tree.hydra.runtime.choices), chosen, by)
        tree = _without_hydra(tree)

        def plain(found: DictConfig) -> dict[str, Any]:
            read = scalars.read(OmegaConf.to_container(found, resolve=True))
            return with_paths(_settled(read, origins), origins)

        values = plain(tree)
        formulas = formulas_of(values)
        _refuse_derived(formulas, chosen)
        project = str((values.get("project") or {}).get("name"))
        sweep = _sweep(values.pop("sweep", None), several, origins)
        if sweep is None or sweep == Sweep():  # as the record of a session with repeats has it
            sweep = Sweep() if repeats_of(values) > 1 else None
        drawn: Sequence[Drawn] = ()
        if sweep is not None:
            _refuse_twice(sweep, chosen)
            trees = Trees(values, lambda c: _without_hydra(tree_of(c)), groups, plain)
            drawn = draw(project, sweep, trees)
        _refuse_missing(tree, {*(sweep.keys() if sweep else ()), *formulas})
    unresolved = scalars.unmarked(OmegaConf.to_yaml(tree))
    return _Read(values, unresolved, origins, project, sweep, drawn)


def _parsed(overrides: Sequence[str], groups: Container[str]) -> list[tuple[Override, str]]:
    """The overrides, and each in Hydra's form: its scalars as they are written."""
    parser = OverridesParser.create()
    found = []
    for line in overrides:
        if re.search("[\ud800-\udfff]", line):  # bytes that the terminal's code has no letter for
            raise BadInput(f"override {line!r}: cannot be read; is this terminal's code UTF-8?")
    for override in parser.parse_overrides(list(overrides)):
        line, key = str(override.input_line), override.key_or_group
        told = line if key in groups or key.startswith("hydra") else scalars.marked_override(line)
        (marked,) = parser.parse_overrides([told])
        marked.input_line = line
        found.append((marked, told))
    return found


def _settled(values: dict[str, Any], origins: Origins) -> dict[str, Any]:
    """Values in which text fields have what was written, byte for byte."""

    def refuse(path: Sequence[str], reason: str) -> BadInput:
        return BadInput(f"{'.'.join(path)}: {reason} ({origins.of(path)})")

    found: dict[str, Any] = scalars.settled(values, Experiment, refuse)
    return found


def _validated(values: dict[str, Any], origins: Origins) -> Experiment:
    try:
        return Experiment.model_validate(_settled(values, origins), context=COMPOSING)
    except ValidationError as error:
        raise BadInput(validation_message(error, origins)) from error


# Sweeps


def _sweep(
    content: Any, on_command_line: Mapping[str, list[Any]], origins: Origins
) -> Sweep | None:
    try:
        sweep = None if content is None else Sweep.model_validate(content)
        return merged_sweep(sweep, on_command_line)
    except ValidationError as error:
        raise BadInput(validation_message(error, origins, below=("sweep",))) from error


def points_of(experiment: Experiment) -> tuple[Point, ...]:
    """The points of a sweep of an experiment that was not composed from a file, as from a form.

    Raises BadInput as `compose` does.
    """
    sweep = experiment.sweep or (Sweep() if experiment.repeats > 1 else None)
    if sweep is None:
        return ()
    base = as_written(experiment.model_dump(exclude={"sweep"}))
    nothing: DictConfig = OmegaConf.create({})
    trees = Trees(base, lambda _: nothing, (), dict)
    drawn = draw(experiment.project.name, sweep, trees)
    return _validated_points(drawn, dict, Origins((), "what was filled in", {}, ()))


def _refuse_twice(sweep: Sweep, overrides: Sequence[Override]) -> None:
    """Refuse an override of a key that the sweep sets: it would have no effect."""
    for override in overrides:
        if override.key_or_group in sweep.keys():  # noqa: SIM118
            raise BadInput(
                f"override `{override.input_line}`: the sweep sets this key; "
                "give all values, as in `a=1,2,3`, or drop it from the sweep"
            )


def _refuse_derived(formulas: Container[str], overrides: Sequence[Override]) -> None:
    """Refuse an override of a key that is derived: it would have no effect."""
    for override in overrides:
        if (key := override.key_or_group) in formulas:
            raise BadInput(
                f"override `{override.input_line}`: `derived` sets this key; give `derived.{key}`"
            )


def _derived(values: Mapping[str, Any], origins: Origins) -> dict[str, Any]:
    """What is derived; raises BadInput with where it comes from."""
    try:
        return results_of(values)
    except Underived as error:
        raise BadInput(f"{error} ({origins.of(('derived', error.key))})") from error


def _refuse_missing(tree: DictConfig, known: set[str]) -> None:
    """Raise for `???` values, except those that the sweep sets, or that are derived."""
    if OmegaConf.missing_keys(tree) - known:
        OmegaConf.to_container(tree, throw_on_missing=True)


def _validated_points(
    drawn: Sequence[Drawn], fill_in: Callable[[dict[str, Any]], dict[str, Any]], origins: Origins
) -> tuple[Point, ...]:
    points: list[Point] = []
    derived: list[dict[str, Any]] = []
    refused: list[str] = []
    for each in drawn:
        set_value(each.values, "project.name", each.name)
        try:
            own, values = origins.with_settings(each.settings), fill_in(each.values)
            results = _derived(values, own)
            experiment = _validated(with_results(values, results), own)
            derived.append({key: value for key, value in results.items() if "." in key})
            points.append(Point(each.number, each.settings, experiment))
        except BadInput as error:
            refused.append(f"{each.title}: {error}")
    if refused:
        raise BadInput("\n".join(some(refused)))
    differing = differing_keys(derived)
    return tuple(
        point._replace(settings={**point.settings, **{key: found[key] for key in differing}})
        for point, found in zip(points, derived, strict=True)
    )


def _refuse_secrets(values: Any, path: tuple[str, ...] = ()) -> None:
    """Refuse values that hold a secret: all of this is stored, and shown in many places."""
    if isinstance(values, list) and (found := redaction.found_in_words(values)):
        raise _secret(path, found)
    inner = values.items() if isinstance(values, dict) else enumerate(values)
    for key, value in inner:
        here = (*path, str(key))
        if isinstance(value, dict | list):
            _refuse_secrets(value, here)
        elif isinstance(value, str) and (found := redaction.found_in(value)):
            raise _secret(here, found)


def _secret(path: tuple[str, ...], found: str) -> BadInput:
    return BadInput(
        f"{'.'.join(path)}: {found}, and a configuration is written down: leave it out and export "
        "it instead, since jobs inherit your environment; a command reads it as `$NAME` in a shell"
    )


def _refuse_no_names(overrides: Sequence[Override], groups: Container[str]) -> None:
    """Refuse a number in place of a group's file name, for which Hydra has no useful message."""
    for override in overrides:
        group, value = override.key_or_group, override.value()
        is_name = isinstance(value, str | list | dict) or hasattr(value, "text")
        if group in groups and not is_name and not override.is_delete():
            raise BadInput(
                f"override `{override.input_line}`: `{group}` takes the name of a file of that "
                f"group; its keys are set one by one, as `{group}.KEY=VALUE`"
            )


def _force(override: Override, line: str, groups: Container[str], listed: Container[str]) -> str:
    """Make a plain `a.b=c` also set a key, or choose a group, that no YAML file mentions.

    Hydra would require a `+` there, and refuse it elsewhere. Whether the key exists is checked by
    the model, which knows the nearest name.
    """
    if override.key_or_group in groups:
        if override.type is OverrideType.ADD and override.key_or_group in listed:
            return line.removeprefix("+")
        is_new = override.type is OverrideType.CHANGE and override.key_or_group not in listed
        return f"+{line}" if is_new else line
    if override.type is OverrideType.CHANGE and override.key_or_group not in groups:
        return f"++{line}"
    return line


def _without_hydra(tree: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(tree, [str(key) for key in tree if key != "hydra"])


_NO_CHOICE = re.compile(
    r"Could not find '(?P<group>[^']+)/(?P<name>[^'/]+)' "
    r"Available options in '[^']+': (?P<known>.*)"
)


def _hydra_message(
    error: Exception, directories: Sequence[Path], name: str, overrides: Sequence[str]
) -> str:
    """The composer's own message without its traceback, and its search path."""
    text = str(error).partition("Config search path:")[0].partition("See https://")[0]
    text = text.partition("3. To sweep over it")[0]
    lines = [line.strip() for line in text.splitlines()]
    reason = " ".join(x for x in lines if x and not x.startswith(("full_key", "object_type")))
    key = getattr(error, "full_key", None)
    if chosen := _NO_CHOICE.search(reason):
        group, name_, known = chosen["group"], chosen["name"], chosen["known"].split()
        files = f"no file configs/{group}/{name_}.yaml{nearest(name_, known)}"
        reason = f"{group}={name_}: {files}; there are: {', '.join(known)}"
    if missing := re.search(r"Environment variable '(\w+)' not found", reason):
        reason = f"the environment variable {missing[1]} is not set; set it" + (
            f", or give `{key}=...`" if key else ""
        )
    reason = f"{key}: {reason}" if key else reason
    if isinstance(error, OverrideParseException):
        reason = (
            f"override `{error.override}` cannot be read: brackets have to match, and a value with "
            "`<`, `(` or letters beyond ASCII wants quotes inside the shell's: 'KEY=\"a < 1\"'"
        )
    file = find_file(directories, name)
    with_overrides = f" with {' '.join(overrides)}" if overrides else ""
    # Messages go to logs, too.
    return redaction.without_secrets(f"{reason} (composing {file or name}{with_overrides})")
