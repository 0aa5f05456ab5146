"""Cooldowns, baselines and merges as written: decays, settings of their own, chains."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from autoexp.config.quantities import Quantity, read_point, read_quantity
from autoexp.config.sweep_expand import short_names
from autoexp.config.sweep_names import derived_names, filled_name
from autoexp.dotted import flat, set_value
from autoexp.errors import BadInput
from autoexp.model import FrozenModel, first_problem
from autoexp.rules.actions import Decay, Shape
from autoexp.rules.durations import Unit
from autoexp.scalars import AsWritten, kept, restored, settled
from autoexp.templates import names_in

_SECTIONS = ("backend", "decay")
_LENGTHS = ("decay.iterations", "decay.tokens", "decay.fraction")
_NAMED = "`decay.iterations`, `decay.tokens` and `decay.fraction`"
_LONGEST_NAME = 40
MOST_VARIANTS = 1000
"""Most branches of one entry from one checkpoint: more are a mistake."""

Point = Annotated[Annotated[int, Field(gt=0)] | Quantity, BeforeValidator(read_point)]
"""A place on the trunk: an iteration, or the tokens or samples seen there."""
MergeShape = Literal["minus_sqrt", "equal", "linear", "cosine", "exponential"]
Choices = list[Any] | dict[str, dict[str, Any]]
BranchName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9._{}-]+$",
        max_length=_LONGEST_NAME,
        description="tells two jobs of one place apart; part of the job's name; with `sweep` a "
        "template, such as `mix-{mix}`",
    ),
]


class Budgets(FrozenModel):
    """Cooldowns by the total length of the model that each one yields, trunk plus decay."""

    totals: tuple[Quantity, ...] = Field(
        min_length=1, description="such as 6B (tokens), `3M samples`, or 1200 (iterations)"
    )
    unit: Unit | None = Field(
        None, description="of totals that name none: tokens after a suffix, else iterations"
    )
    fraction: float = Field(0.2, gt=0, lt=1, description="share of the total that decays")
    shape: Shape | None = Field(None, description="the same as `decay.shape`")

    @model_validator(mode="before")
    @classmethod
    def _read_totals(cls, values: Any) -> Any:
        totals = values.get("totals") if isinstance(values, dict) else None
        if not isinstance(totals, list | tuple):
            return values
        return {**values, "totals": [read_quantity(x, values.get("unit")) for x in totals]}


class Variant(NamedTuple):
    """One branch of an entry, as its `sweep` makes it."""

    name: str | None
    decay: Decay
    backend: dict[str, Any]
    """Changes to the parent's backend, nested."""


def _branch_sweep(written: Any) -> Any:
    """Flatten nested keys, and those of a choice's settings."""
    if not isinstance(written, dict):
        return written
    read: dict[str, Any] = {}
    for key, value in written.items():
        if key in _SECTIONS and isinstance(value, dict):
            read |= flat(value, f"{key}.")
        else:
            read[key] = value
    return read


class RunSettings(FrozenModel):
    """What any run with a decay says: that, and its own settings."""

    decay: Decay = Field(default_factory=Decay, description="how the learning rate decays")
    name: BranchName | None = None
    backend: AsWritten = Field(
        default_factory=dict,
        description="changes to the parent's backend: `{args: {mix: code}}`",
    )
    sweep: Annotated[dict[str, Choices], AfterValidator(kept)] = Field(
        default_factory=dict,
        description="a run for each combination: values of a key of `backend` or `decay`, or "
        "choices by name, each with its settings: `mix: {code: {backend.args.data_path: [a]}}`",
    )

    @model_validator(mode="before")
    @classmethod
    def _flat_sweep(cls, values: Any) -> Any:
        if isinstance(values, dict) and "sweep" in values:
            return {**values, "sweep": _branch_sweep(values["sweep"])}
        return values

    @model_validator(mode="after")
    def _sweep_is_of_a_branch(self) -> Self:
        for key, choices in self.sweep.items():
            if not choices:
                raise ValueError(f"sweep.{key}: has no value")
            if isinstance(choices, dict):
                for name, settings in choices.items():
                    for inner in flat(settings):
                        _refuse_key(f"sweep.{key}.{name}.{inner}", inner)
            else:
                _refuse_key(f"sweep.{key}", key)
        unknown = [x for x in names_in(self.name or "") if x not in _words(self.sweep)]
        if unknown:
            known = ", ".join(sorted(_words(self.sweep))) or "no `sweep`"
            raise ValueError(f"name: nothing is called `{{{unknown[0]}}}`; there is: {known}")
        return self

    @property
    def lengths(self) -> list[str]:
        """The ways in which the decay's length is given."""
        own = [key for key in _LENGTHS if getattr(self.decay, key.partition(".")[2]) is not None]
        swept = [key for key in _swept_keys(self.sweep) if key in _LENGTHS]
        return list(dict.fromkeys([*own, *swept]))

    def variants(self) -> list[Variant]:
        """The branches of this entry from one checkpoint; raises BadInput for one that is none."""
        points = list(itertools.islice(_points(self.sweep), MOST_VARIANTS + 1))
        if len(points) > MOST_VARIANTS:
            raise BadInput(f"sweep: more than {MOST_VARIANTS} branches")
        names = _names(self.name, self.sweep, points)
        return [
            self._variant(name, settings) for name, (_, settings) in zip(names, points, strict=True)
        ]

    def _variant(self, name: str | None, settings: Mapping[str, Any]) -> Variant:
        changes: dict[str, Any] = {"backend": _copied(self.backend), "decay": {}}
        for key, value in settings.items():
            set_value(changes, key, value)
        decay = self.decay
        if changes["decay"]:
            content = {**decay.model_dump(exclude_unset=True), **restored(changes["decay"])}
            try:
                decay = Decay.model_validate(settled(content, Decay, _refusal))
            except ValidationError as error:
                raise BadInput(f"sweep: {first_problem(error, 'decay')}") from error
        return Variant(name, decay, changes["backend"])


class BranchSettings(RunSettings):
    """What any branch says: also how long it keeps its rate, and what follows it."""

    stable: Point | None = Field(
        None,
        description="length at the peak rate before the decay, iterations or `2B` (tokens): a "
        "chain of such branches is WSD-S, which goes on from each cooled model",
    )
    then: "tuple[FollowUp, ...]" = Field(
        (), description="branches from the end of each branch of this entry: a chain"
    )


class Baseline(RunSettings):
    """One run from scratch with another schedule: a cosine, or constant and one decay (WSD)."""

    totals: tuple[Point, ...] | None = Field(
        None,
        min_length=1,
        description="a run of each length, iterations or `10B` (tokens); the training's if unset",
    )

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if len(self.lengths) > 1:
            raise ValueError(f"give one of {_NAMED}; without one the rate decays over all of it")
        return self


class FollowUp(BranchSettings):
    """A branch from the end of another one."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if len(self.lengths) != 1:
            raise ValueError(f"give exactly one of {_NAMED}")
        return self


class Cooldown(BranchSettings):
    """Branch points on the trunk, and the decay."""

    at: tuple[Point, ...] | None = Field(
        None, min_length=1, description="branch points: iterations, or `10B` (tokens seen there)"
    )
    every: Point | None = Field(
        None, description="a branch point every so many iterations, or tokens: `5B`"
    )
    budgets: Budgets | None = Field(None, description="branch points from total budgets")

    snap_at_most: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="largest share of the model's length by which a branch point may lie before "
        "the one asked for, where the trainer saves at its interval alone: `0.02`",
    )

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> Self:
        if sum(way is not None for way in (self.at, self.every, self.budgets)) != 1:
            raise ValueError("give exactly one of `at`, `every` and `budgets`")
        if self.budgets is not None and self.lengths:
            raise ValueError("`budgets` gives the decay's length: leave it out of `decay`")
        if self.budgets is not None and self.stable is not None:
            raise ValueError("`budgets` gives the model's length: leave `stable` out")
        if (
            self.budgets is not None
            and self.budgets.shape
            and "shape" in self.decay.model_fields_set
        ):
            raise ValueError("give `shape` in `budgets` or in `decay`")
        if self.budgets is None and len(self.lengths) != 1:
            raise ValueError(f"give exactly one of {_NAMED}")
        return self


class Merge(FrozenModel):
    """A model merged from checkpoints of the trunk, in place of a cooldown (arXiv 2507.17634)."""

    at: tuple[int, ...] = Field(min_length=1, description="the last checkpoint, iterations")
    last: int = Field(gt=0, description="iterations before it whose checkpoints are merged with it")
    shape: MergeShape = Field(
        "minus_sqrt",
        description="the decay that the weights imitate, or `equal` weights",
    )
    name: BranchName | None = None
    slurm: dict[str, Any] = Field(
        default_factory=dict,
        description="changes to its resources, which are one node without GPUs",
    )
    minutes: float | None = Field(None, gt=0, description="its estimated length, for the budget")
    scores: str | None = Field(
        None, description="JSON file of numbers that the merger writes, in its output directory"
    )


def _refusal(path: Sequence[str], reason: str) -> BadInput:
    return BadInput(f"sweep.decay.{'.'.join(path)}: {reason}")


def _refuse_key(where: str, key: str) -> None:
    if key.split(".")[0] not in _SECTIONS or "." not in key:
        raise ValueError(f"{where}: a branch has keys of `backend.` and `decay.` alone")


def _swept_keys(sweep: Mapping[str, Choices]) -> Iterator[str]:
    for key, choices in sweep.items():
        if isinstance(choices, dict):
            for settings in choices.values():
                yield from flat(settings)
        else:
            yield key


def _words(sweep: Mapping[str, Choices]) -> dict[str, str]:
    """The keys of a sweep by the names that a template may use."""
    short = short_names(list(sweep))
    return {word: key for key in sweep for word in {key, short[key]}}


def _points(sweep: Mapping[str, Choices]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The chosen value or choice of each key, and the settings that it means."""
    options = [list(choices) for choices in sweep.values()]
    for combination in itertools.product(*options):
        picked = dict(zip(sweep, combination, strict=True))
        settings: dict[str, Any] = {}
        for key, value in picked.items():
            choices = sweep[key]
            settings |= flat(choices[value]) if isinstance(choices, dict) else {key: value}
        yield picked, settings


def _names(
    template: str | None,
    sweep: Mapping[str, Choices],
    points: Sequence[tuple[dict[str, Any], dict[str, Any]]],
) -> list[str | None]:
    """A name for each branch; raises BadInput where a template gives one to two of them."""
    if not sweep:
        return [template]
    picked = [restored(values) for values, _ in points]
    if template is None or not any(True for _ in names_in(template)):
        derived = derived_names(picked, _LONGEST_NAME - len(template or "") - 1)
        return [f"{template}-{name}" if template else name for name in derived]
    words = _words(sweep)
    names = [
        filled_name(template, {word: each[key] for word, key in words.items()}) for each in picked
    ]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise BadInput(f"name: {template!r} gives two branches one name, {double}")
    return list(names)


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copied(v) if isinstance(v, Mapping) else v for k, v in values.items()}
