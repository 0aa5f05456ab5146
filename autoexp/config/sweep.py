"""The model of a sweep: grids, lists, groups of both, defaults and filters."""

from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from autoexp.config.expressions import parse
from autoexp.dotted import flat
from autoexp.model import FrozenModel

Setting = Any
"""The value of a key: a number, a text, a list, a mapping."""
Settings = dict[str, Setting]
"""Values by dotted key: `{backend.args.lr: 1e-2}`."""


def _expression(text: str) -> str:
    parse(text)
    return text


Filter = Annotated[str, AfterValidator(_expression)]


class Group(FrozenModel):
    """Some points of a sweep: every combination of `grid`, `list` and `groups`."""

    defaults: Settings = Field(
        default_factory=dict, description="values of all points here, unless they override them"
    )
    grid: dict[str, list[Setting]] = Field(
        default_factory=dict, description="all combinations of these values, by dotted key"
    )
    list: tuple[Settings, ...] = Field((), description="these settings, one after the other")
    groups: "tuple[Group, ...]" = Field((), description="the points of these, one after the other")
    filter: tuple[Filter, ...] = Field(
        (),
        description="expressions over the values, such as `lr * batch < 4`; others are dropped",
    )

    @model_validator(mode="before")
    @classmethod
    def _spelled_out(cls, values: Any) -> Any:
        """Flatten nested keys, as an override `sweep.grid.backend.args.lr=[1,2]` makes them."""
        if not isinstance(values, dict):
            return values
        read = dict(values)
        for name in ("defaults", "grid"):
            if isinstance(read.get(name), dict):
                read[name] = flat(read[name])
        if isinstance(read.get("list"), list | tuple):
            read["list"] = [flat(x) if isinstance(x, dict) else x for x in read["list"]]
        if isinstance(read.get("filter"), str):
            read["filter"] = [read["filter"]]
        return read

    @model_validator(mode="after")
    def _keys_once(self) -> Self:
        for key, choices in self.grid.items():
            if not choices:
                raise ValueError(f"grid.{key}: has no value")
        ours = set(self.grid)
        inner = {key for settings in self.list for key in settings}
        deeper = {key for group in self.groups for key in group.keys()}  # noqa: SIM118
        for key in (ours & inner) | (ours & deeper) | (inner & deeper):
            raise ValueError(f"{key}: is set in two of `grid`, `list` and `groups`")
        return self

    def keys(self) -> set[str]:
        """The keys in which points differ, and those that they share."""
        inner = {key for settings in self.list for key in settings}
        deeper = {key for group in self.groups for key in group.keys()}  # noqa: SIM118
        return {*self.defaults, *self.grid, *inner, *deeper}


class Sweep(Group):
    """Many settings of one experiment, in one session."""

    name: str | None = Field(
        None,
        description="name of a point, a template such as `lr{lr}-b{batch}`; by default all values "
        "that differ",
    )
