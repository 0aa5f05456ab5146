"""Retention as written: `keep: [branch_points, {last: 3}, {every: 10000}, evaluated]`."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from autoexp.model import FrozenModel, nearest
from autoexp.rules.durations import Bytes

_WORDS = ("branch_points", "evaluated")


class KeepRule(FrozenModel):
    """One rule of what is kept, for each training and each branch by itself."""

    branch_points: Literal[True] | None = Field(
        None, description="what branches, merges and stages of the session start from, for good"
    )
    evaluated: Literal[True] | None = Field(
        None, description="what an evaluation of the session is of, for good"
    )
    last: int | None = Field(None, gt=0, description="so many of the newest")
    every: int | None = Field(None, gt=0, description="those at multiples of so many iterations")

    @model_validator(mode="before")
    @classmethod
    def _read(cls, written: Any) -> Any:
        if not isinstance(written, str):
            return written
        if written not in _WORDS:
            raise ValueError(
                f"`{written}`: write {', '.join(_WORDS)}, `last: 3` or `every: 10000`"
                f"{nearest(written, _WORDS)}"
            )
        return {written: True}

    @model_validator(mode="after")
    def _one_thing(self) -> Self:
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError("each entry of `keep` is one rule: `{last: 3}`, `{every: 10000}`")
        return self

    def __str__(self) -> str:
        for name, value in self.model_dump(exclude_none=True).items():
            return name if value is True else f"{name}: {value}"
        return ""


class Retention(FrozenModel):
    """Which checkpoints stay; the others are deleted once nothing needs them."""

    keep: tuple[KeepRule, ...] = Field(
        min_length=1,
        description="what stays, besides all that something still needs: `branch_points`, "
        "`evaluated`, `{last: 3}`, `{every: 10000}`",
    )
    budget: Bytes | None = Field(
        None,
        description="disk space of all checkpoints (`15TB`); above it there is a warning, and "
        "nothing more is deleted",
    )
    checkpoint_size: Bytes | None = Field(
        None,
        description="size of a checkpoint, for the plan's figure; estimated if unset: 14 bytes "
        "for each parameter of the model",
    )
    dry_run: bool = Field(
        False, description="delete nothing: `autoexp checkpoints` shows what would be"
    )

    @property
    def last(self) -> int:
        """Number of the newest that stay; the newest one always does."""
        return max(rule.last or 1 for rule in self.keep)

    @property
    def every(self) -> tuple[int, ...]:
        """Multiples that stay."""
        return tuple(rule.every for rule in self.keep if rule.every is not None)

    @property
    def branch_points(self) -> bool:
        return any(rule.branch_points for rule in self.keep)

    @property
    def evaluated(self) -> bool:
        return any(rule.evaluated for rule in self.keep)
