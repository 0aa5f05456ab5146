"""From YAML and overrides to a validated experiment: Hydra composes, pydantic judges."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from yaml import YAMLError

from autoexp import sensitive
from autoexp.backends.base import COMPOSING
from autoexp.errors import BadInput
from autoexp.experiment import Experiment
from autoexp.plain import escaped, set_value
from autoexp.problems import Origins, find_file, nearest, validation_message
from autoexp.sweep.language import Sweep
from autoexp.sweep.points import Drawn, Point, draw, merged_sweep, some, swept

SHIPPED = Path(__file__).resolve().parent.parent / "configs"
DEFAULT_CONFIG = "default"


class Composed(NamedTuple):
    """An experiment and what it was made from, enough to make it again."""

    experiment: Experiment
    config: str
    overrides: tuple[str, ...]
    resolved: str
    """YAML with every interpolation resolved."""
    unresolved: str
    """YAML as composed, interpolations kept."""
    points: tuple[Point, ...] = ()
    """What a sweep comes to; empty without one."""


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
    directories, name = _locate(config)
    groups = _groups(directories)
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        several = swept(parsed)
        single = [override for override in parsed if override.key_or_group not in several]
        spelled = [_force(override, groups) for override in single]
        with _merged(directories) as merged, initialize_config_dir(str(merged), version_base="1.3"):

            def tree_of(choices: tuple[str, ...] = ()) -> DictConfig:
                return hydra_compose(name, [*spelled, *choices], return_hydra_config=True)

            tree = tree_of()
            chosen = [override for override in single if override.key_or_group not in groups]
            origins = Origins(directories, name, dict(tree.hydra.runtime.choices), chosen)
            tree = _without_hydra(tree)
            plain = _plain(tree)
            unresolved = OmegaConf.to_yaml(tree)
            sweep = _sweep(plain.pop("sweep", None), several, origins)
            if sweep is not None:
                _refuse_twice(sweep, chosen)
                project = str((plain.get("project") or {}).get("name"))
                drawn = draw(project, sweep, plain, lambda c: _without_hydra(tree_of(c)), groups)
            _refuse_missing(tree, sweep)
    except (HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise BadInput(_hydra_message(error, directories, name, overrides)) from error
    points: tuple[Point, ...] = ()
    values = fill_in(plain)
    _refuse_secrets({**values, "sweep": sweep.model_dump() if sweep else {}})
    if sweep is None:
        experiment = _validated(values, origins)
    else:
        points = _validated_points(drawn, fill_in, origins)
        of_all = {"project": points[0].experiment.project.model_copy(update={"name": project})}
        experiment = points[0].experiment.model_copy(update={**of_all, "sweep": sweep})
        values = {**values, "sweep": sweep.model_dump(mode="json", exclude_defaults=True)}
    return Composed(
        experiment=experiment,
        config=name,
        overrides=tuple(overrides),
        resolved=yaml.safe_dump(escaped(values), sort_keys=False, allow_unicode=True),
        unresolved=unresolved,
        points=points,
    )


def _plain(tree: DictConfig) -> dict[str, Any]:
    found = OmegaConf.to_container(tree, resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def _validated(values: dict[str, Any], origins: Origins) -> Experiment:
    try:
        return Experiment.model_validate(values, context=COMPOSING)
    except ValidationError as error:
        raise BadInput(validation_message(error, origins)) from error


# Sweeps


def _sweep(
    written: Any, on_command_line: Mapping[str, list[Any]], origins: Origins
) -> Sweep | None:
    try:
        sweep = None if written is None else Sweep.model_validate(written)
        return merged_sweep(sweep, on_command_line)
    except ValidationError as error:
        raise BadInput(validation_message(error, origins, below=("sweep",))) from error


def points_of(experiment: Experiment) -> tuple[Point, ...]:
    """What the sweep of an experiment comes to that no file composed, as a filled-in form.

    Raises BadInput as `compose` does.
    """
    if experiment.sweep is None:
        return ()
    base = experiment.model_dump(exclude={"sweep"})
    nothing: DictConfig = OmegaConf.create({})
    drawn = draw(experiment.project.name, experiment.sweep, base, lambda _: nothing, ())
    return _validated_points(drawn, dict, Origins((), "what was filled in", {}, ()))


def _refuse_twice(sweep: Sweep, overrides: Sequence[Override]) -> None:
    """An override of a key that the sweep sets would be heeded nowhere."""
    for override in overrides:
        if override.key_or_group in sweep.keys():  # noqa: SIM118
            raise BadInput(
                f"override `{override.input_line}`: the sweep sets this key; "
                "give all values, as in `a=1,2,3`, or drop it from the sweep"
            )


def _refuse_missing(tree: DictConfig, sweep: Sweep | None) -> None:
    """Raise for `???` values, but for those that the sweep sets."""
    missing = OmegaConf.missing_keys(tree)
    if missing - (sweep.keys() if sweep else set()):
        OmegaConf.to_container(tree, throw_on_missing=True)


def _validated_points(
    drawn: Sequence[Drawn], fill_in: Callable[[dict[str, Any]], dict[str, Any]], origins: Origins
) -> tuple[Point, ...]:
    points: list[Point] = []
    refused: list[str] = []
    for each in drawn:
        set_value(each.values, "project.name", each.name)
        try:
            experiment = _validated(fill_in(each.values), origins.with_settings(each.settings))
            points.append(Point(each.number, each.settings, experiment))
        except BadInput as error:
            refused.append(f"{each.title}: {error}")
    if refused:
        raise BadInput("\n".join(some(refused)))
    return tuple(points)


@contextmanager
def _merged(directories: Sequence[Path]) -> Iterator[Path]:
    """One directory that shows all of them, the first one's files before the others'.

    Hydra looks for the primary file in its first directory only, and lets that one's groups win;
    here a shipped experiment may use a group file of the user's own, and any path will do.
    """
    with tempfile.TemporaryDirectory(prefix="autoexp-configs-") as name:
        merged = Path(name)
        for directory in directories:
            for file in sorted(directory.rglob("*.y*ml")):
                link = (merged / file.relative_to(directory)).with_suffix(".yaml")
                link.parent.mkdir(parents=True, exist_ok=True)
                if not link.exists():
                    link.symlink_to(file)
        yield merged


def available() -> dict[str, Path]:
    """The runnable experiments by name, the user's own before the shipped ones."""
    found: dict[str, Path] = {}
    for directory in _directories():
        for path in sorted(directory.glob("*.y*ml")):
            found.setdefault(path.stem, path)
    return found


def _directories() -> list[Path]:
    own = os.environ.get("AUTOEXP_CONFIGS")
    candidates = [Path(own) if own else Path("configs"), SHIPPED]
    if own and not candidates[0].is_dir():
        raise BadInput(f"AUTOEXP_CONFIGS names {own}, which is not a directory")
    found = [path.resolve() for path in candidates if path.is_dir()]
    return list(dict.fromkeys(found))


def _locate(config: str | None) -> tuple[list[Path], str]:
    """The search path, best first, and the name of the primary file in it."""
    directories = _directories()
    if config is None:
        config = DEFAULT_CONFIG
    if config.endswith((".yaml", ".yml")) or "/" in config:
        path = Path(config).resolve()
        if not path.is_file():
            raise BadInput(f"{config}: no such file, or no file; give a YAML file or a name")
        return list(dict.fromkeys([path.parent, *directories])), path.stem
    if config not in available():
        names = ", ".join(sorted(available()))
        raise BadInput(
            f"{config}: no such configuration{nearest(config, available())}; there are: {names}"
        )
    return directories, config


def _groups(directories: Sequence[Path]) -> frozenset[str]:
    return frozenset(
        path.name for directory in directories for path in directory.iterdir() if path.is_dir()
    )


def group_choices(overrides: Sequence[str]) -> dict[str, str]:
    """Overrides that choose a file of a group, such as `slurm=lumi`."""
    groups = _groups(_directories())
    words = (word.partition("=") for word in overrides)
    return {key: value for key, _, value in words if key in groups and value}


def _refuse_secrets(values: Any, path: tuple[str, ...] = ()) -> None:
    """Refuse values that hold what a variable with a secret's name holds: all this is written."""
    inner = values.items() if isinstance(values, dict) else enumerate(values)
    for key, value in inner:
        here = (*path, str(key))
        if isinstance(value, dict | list):
            _refuse_secrets(value, here)
        elif isinstance(value, str) and (name := sensitive.held_in(value)):
            raise BadInput(
                f"{'.'.join(here)}: holds the value of ${name}, and a configuration is written "
                "down: leave it out, since jobs inherit your environment"
            )


def _force(override: Override, groups: frozenset[str]) -> str:
    """Let a plain `a.b=c` also set a key that no YAML file mentions.

    Hydra would ask for a `+` there. Whether the key exists is for the model to say, which knows
    the nearest name.
    """
    line = str(override.input_line)
    if override.type is OverrideType.CHANGE and override.key_or_group not in groups:
        return f"++{line}"
    return line


def _without_hydra(tree: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(tree, [str(key) for key in tree if key != "hydra"])


def _hydra_message(
    error: Exception, directories: Sequence[Path], name: str, overrides: Sequence[str]
) -> str:
    """The composer's own words without its traceback, and where it looked."""
    text = str(error).partition("Config search path:")[0].partition("See https://")[0]
    text = text.partition("3. To sweep over it")[0]
    lines = [line.strip() for line in text.splitlines()]
    said = " ".join(x for x in lines if x and not x.startswith(("full_key", "object_type")))
    key = getattr(error, "full_key", None)
    said = f"{key}: {said}" if key else said
    file = find_file(directories, name)
    with_overrides = f" with {' '.join(overrides)}" if overrides else ""
    return f"{said} (composing {file or name}{with_overrides})"
