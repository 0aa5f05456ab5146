"""From YAML and overrides to a validated experiment: Hydra composes, pydantic judges."""

import difflib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
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
from pydantic_core import ErrorDetails
from yaml import YAMLError

from autoexp import fields, sensitive
from autoexp.backends.base import COMPOSING
from autoexp.errors import BadInput
from autoexp.experiment import Experiment

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
        spelled = [_force(override, groups) for override in parsed]
        with _merged(directories) as merged, initialize_config_dir(str(merged), version_base="1.3"):
            tree = hydra_compose(name, spelled, return_hydra_config=True)
            choices = dict(tree.hydra.runtime.choices)
            tree = _without_hydra(tree)
            plain = OmegaConf.to_container(tree, resolve=True, throw_on_missing=True)
            unresolved = OmegaConf.to_yaml(tree)
    except (HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise BadInput(_hydra_message(error, directories, name, overrides)) from error
    assert isinstance(plain, dict)
    values = fill_in({str(key): value for key, value in plain.items()})
    _refuse_secrets(values)
    try:
        experiment = Experiment.model_validate(values, context=COMPOSING)
    except ValidationError as error:
        chosen = [override for override in parsed if override.key_or_group not in groups]
        origin = _Origins(directories, name, choices, chosen)
        raise BadInput(_validation_message(error, origin)) from error
    return Composed(
        experiment=experiment,
        config=name,
        overrides=tuple(overrides),
        resolved=yaml.safe_dump(escaped(values), sort_keys=False, allow_unicode=True),
        unresolved=unresolved,
    )


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


def escaped(value: Any) -> Any:
    """Text that looks like an interpolation stays text when the file is composed again."""
    if isinstance(value, dict):
        return {key: escaped(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [escaped(inner) for inner in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value


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
            f"{config}: no such configuration{_nearest(config, available())}; there are: {names}"
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


class _Origins:
    """Says where the value of a key came from."""

    def __init__(
        self,
        directories: Sequence[Path],
        name: str,
        choices: dict[str, str],
        overrides: Sequence[Override],
    ) -> None:
        self._directories = directories
        self._name = name
        self._choices = choices
        self._overrides = overrides

    def of(self, location: Sequence[str]) -> str:
        key = ".".join(location)
        for override in reversed(self._overrides):
            if key == override.key_or_group or key.startswith(f"{override.key_or_group}."):
                return f"override `{override.input_line}`"
        primary = _find(self._directories, self._name)
        choice = self._choices.get(location[0]) if location else None
        if choice is None or (primary is not None and _mentions(primary, location)):
            return str(primary or self._name)
        return str(_find(self._directories, f"{location[0]}/{choice}") or location[0])


def _mentions(path: Path, location: Sequence[str]) -> bool:
    node: Any = OmegaConf.to_container(OmegaConf.load(path))
    for part in location:
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def _validation_message(error: ValidationError, origins: _Origins) -> str:
    """One line per problem: path, what is wrong, the nearest valid name, where it came from."""
    lines = [_problem(details, origins) for details in error.errors()]
    return "\n".join(dict.fromkeys(lines))


def _problem(details: ErrorDetails, origins: _Origins) -> str:
    found = fields.walk(Experiment, details["loc"])
    path = ".".join(found.path) or "experiment"
    origin = origins.of(found.path)
    if details["type"] == "extra_forbidden":
        names = {*found.beside, *details.get("ctx", {}).get("known", ())}
        return f"{path}: no such key{_nearest(found.path[-1], names)} ({origin})"
    if details["type"] == "missing":
        return f"{path}: missing ({origin})"
    message = details["msg"].removeprefix("Value error, ")
    shown = details["input"]
    given = f", got {shown!r}" if isinstance(shown, str | int | float) else ""
    return f"{path}: {message}{given} ({origin})"


def _nearest(name: str, names: Any) -> str:
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"; did you mean `{close[0]}`?" if close else ""


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
    file = _find(directories, name)
    with_overrides = f" with {' '.join(overrides)}" if overrides else ""
    return f"{said} (composing {file or name}{with_overrides})"


def _find(directories: Sequence[Path], name: str) -> Path | None:
    """The file that a name means: `demo`, or `backend/demo`."""
    files = (d / f"{name}{suffix}" for d in directories for suffix in (".yaml", ".yml"))
    return next((file for file in files if file.is_file()), None)
