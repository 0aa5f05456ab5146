"""Points of a sweep as values of whole experiments: composed once, changed for each point."""

import copy
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from autoexp import scalars
from autoexp.config.experiment import Experiment
from autoexp.config.sweep import Settings, Sweep
from autoexp.config.sweep_expand import expand, short_names
from autoexp.config.sweep_names import name_points
from autoexp.config.values.derived import formulas_of, results_of, with_results
from autoexp.config.values.repeats import repeats_of, seed_key, settings_of_repeat
from autoexp.dotted import escaped, flat, set_value
from autoexp.errors import BadInput

if TYPE_CHECKING:  # sessions are read without Hydra, which takes as long to import as all of that
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

TreeOf = Callable[[tuple[str, ...]], "DictConfig"]
"""Composes with these choices of group files besides the others."""

_OF_SESSION = ("repeats", "monitoring", "sweep", "project", "hydra")
_OF_SCHEDULER = ("slurm.kind", "slurm.max_jobs", "slurm.scheduler_tick_s", "slurm.lost_after_s")
_OF_BUDGET = ("budget.confirm_above", "budget.stop_above")


class Drawn(NamedTuple):
    """A point before it is validated."""

    number: int
    """From 1, in the whole sweep."""
    name: str
    settings: Settings
    values: dict[str, Any]

    @property
    def title(self) -> str:
        return f"sweep point {self.number} ({self.name})"


class Point(NamedTuple):
    """One setting of a sweep, as an experiment of its own."""

    number: int
    settings: Settings
    experiment: Experiment

    @property
    def title(self) -> str:
        return f"sweep point {self.number} ({self.experiment.project.name})"


def swept(overrides: Iterable["Override"]) -> dict[str, list[Any]]:
    """The keys that have several values on the command line, as in `a=1,2,3`."""
    found: dict[str, list[Any]] = {}
    for override in overrides:
        if not override.is_sweep_override():
            continue
        if not override.is_choice_sweep() and not override.is_range_sweep():
            raise BadInput(f"{override.input_line}: give values, as in `a=1,2,3` or `a=range(1,9)`")
        values = list(override.sweep_iterator(lambda value: value))
        found[override.key_or_group] = _choices(override.key_or_group, values)
    return found


def _choices(key: str, values: list[Any]) -> list[Any]:
    def refuse(path: Sequence[str], reason: str) -> BadInput:
        del path
        return BadInput(f"{key}: {reason}")

    choices: list[Any] = scalars.settled(scalars.read(values), list[Any], refuse)
    return choices


def merged_sweep(sweep: Sweep | None, on_command_line: Mapping[str, list[Any]]) -> Sweep | None:
    """The sweep of the file merged with that of the command line, which wins."""
    if not on_command_line:
        return sweep
    own = sweep or Sweep()
    content = own.model_dump()
    content["grid"] = {**own.grid, **on_command_line}
    return Sweep.model_validate(content)


def draw(project: str, sweep: Sweep, trees: "Trees") -> list[Drawn]:
    """The points' names and values.

    Raises BadInput for a key that all points have to share, and where `expand` does.
    """
    for key in sweep.keys():  # noqa: SIM118
        refuse_shared(f"sweep: {key}", key)
        if key in trees.formulas:
            raise BadInput(f"sweep: {key}: `derived` sets this key; sweep what it follows from")
    short = short_names(sorted(sweep.keys()))

    def known(settings: Settings) -> dict[str, Any]:
        own = {short[key]: value for key, value in settings.items()}
        values = trees.values(settings)
        results = results_of(values)
        return {**flat(with_results(values, results)), **results, **settings, **own}

    settings = expand(sweep, known)
    template_values = [known(each) for each in settings] if sweep.name is not None else []
    names = name_points(project, sweep.name, settings, template_values)
    drawn = [
        Drawn(number, name, each, trees.values(each))
        for number, (name, each) in enumerate(zip(names, settings, strict=True), start=1)
    ]
    _refuse_different(drawn)
    _refuse_equal(drawn)
    return drawn if trees.repeats == 1 else _repeated(drawn, sweep, trees)


def _repeated(drawn: Sequence[Drawn], sweep: Sweep, trees: "Trees") -> list[Drawn]:
    """Each point as often as `repeats` says, with seeds of its own."""
    found: list[Drawn] = []
    for point in drawn:
        key = seed_key(point.values)
        if key is not None and key in {*sweep.keys(), *trees.formulas}:
            raise BadInput(f"repeats: the sweep, or `derived`, sets {key}, as `repeats` does")
        # Without a sweep the one point has the project's own name.
        name = point.name if sweep.keys() else point.values["project"]["name"]
        for number in range(1, trees.repeats + 1):
            own = settings_of_repeat(point.values, number)
            values = copy.deepcopy(point.values)
            if key is not None:
                set_value(values, key, own[key])
            settings = {**point.settings, **own}
            found.append(Drawn(len(found) + 1, f"{name}-r{number}", settings, values))
    return found


def refuse_shared(where: str, key: str) -> None:
    """Raise BadInput for a key of the experiment that all trainings of a session have to share."""
    if key.split(".")[0] in _OF_SESSION or key in (*_OF_SCHEDULER, *_OF_BUDGET):
        raise BadInput(f"{where}: belongs to the session, which all points share")


def _refuse_different(drawn: Sequence[Drawn]) -> None:
    """Refuse shared values that come from different group files of the points, too."""
    first = flat(drawn[0].values)
    for point in drawn[1:]:
        own = flat(point.values)
        for key in (*_OF_SCHEDULER, *_OF_BUDGET):
            if own.get(key) != first.get(key):
                raise BadInput(
                    f"{point.title}: {key} is {own.get(key)}, and {first.get(key)} in "
                    f"{drawn[0].title}: it belongs to the session, which all points share"
                )


def _refuse_equal(drawn: Sequence[Drawn]) -> None:
    """Refuse two points with the same settings: they would be one run, paid for twice."""
    first: dict[str, Drawn] = {}
    for point in drawn:
        same = first.setdefault(repr(sorted(flat(point.values).items())), point)
        if same is not point:
            raise BadInput(
                f"{point.title}: has the settings of {same.title}, so it would be the same run; "
                "leave it out, or let a seed tell the two apart"
            )


class Trees:
    """Composed values by the choice of group files; composing takes tens of milliseconds."""

    def __init__(
        self,
        base: Mapping[str, Any],
        tree_of: TreeOf,
        groups: Container[str],
        plain: Callable[["DictConfig"], dict[str, Any]],
    ) -> None:
        """`base` is what was composed without the sweep, `plain` reads what was composed."""
        self._plain = plain
        self._base = base
        self._tree_of = tree_of
        self._groups = groups
        self.formulas = formulas_of(base)
        self.repeats = repeats_of(base)
        self._known: dict[tuple[str, ...], tuple[DictConfig | None, Mapping[str, Any]]] = {}

    def values(self, settings: Settings) -> dict[str, Any]:
        """The values of a point."""
        chosen = {k: v for k, v in settings.items() if k in self._groups and isinstance(v, str)}
        changes = {k: v for k, v in settings.items() if k not in chosen}
        live, plain = self._composed(tuple(f"{k}={v}" for k, v in chosen.items()))
        if live is not None and changes:
            plain = self._interpolated(live, changes)
        values = {key: copy.deepcopy(value) for key, value in plain.items() if key != "sweep"}
        for key, value in changes.items():
            set_value(values, key, value)
        return values

    def _composed(self, choices: tuple[str, ...]) -> "tuple[DictConfig | None, Mapping[str, Any]]":
        from omegaconf import OmegaConf

        if choices not in self._known:
            tree = self._tree_of(choices)
            tree.pop("sweep", None)
            plain = self._base
            if choices:
                OmegaConf.to_container(tree, resolve=True, throw_on_missing=True)
                plain = self._plain(tree)
            # Values that refer to other keys follow their changes.
            refers = _refers(OmegaConf.to_container(tree, resolve=False))
            self._known[choices] = (tree if refers else None, plain)
        return self._known[choices]

    def _interpolated(self, tree: "DictConfig", changes: Settings) -> dict[str, Any]:
        from omegaconf import OmegaConf

        changed = copy.deepcopy(tree)
        for key, value in changes.items():
            told = escaped(scalars.plain(value))
            OmegaConf.update(changed, key, told, merge=False, force_add=True)
        OmegaConf.to_container(changed, resolve=True, throw_on_missing=True)
        return self._plain(changed)


def _refers(value: Any) -> bool:
    """True if a text in it refers to another key, not only to the environment."""
    if isinstance(value, Mapping):
        return any(_refers(inner) for inner in value.values())
    if isinstance(value, list):
        return any(_refers(inner) for inner in value)
    return isinstance(value, str) and "${" in value.replace("${oc.env:", "")


def some(lines: Sequence[str], most: int = 3) -> list[str]:
    """The first few of many lines, and the number of the others."""
    more = len(lines) - most
    return [*lines[:most], *([f"and {more} more points"] if more > 0 else [])]
