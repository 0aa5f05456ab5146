"""The rules as they are written in `monitoring`: mappings from a rule's name to the rule.

Names make rules mergeable: a preset that extends another adds rules, changes keys of one, or
switches one off with `null`.
"""

from collections.abc import Iterator
from typing import Annotated, Self, TypeVar

from pydantic import Field, model_validator

from autoexp.model import FrozenModel
from autoexp.rules.rules import (
    CheckpointRule,
    InactivityRule,
    LogRule,
    MetricRule,
    RuleBase,
    SessionRule,
    StateRule,
)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=40)]
R = TypeVar("R", bound=RuleBase)
Named = dict[Name, R | None]


class Rules(FrozenModel):
    """All rules of a session, by kind and name; `null` switches off a rule that is extended."""

    log_events: Named[LogRule] = Field(default_factory=dict, description="lines in logs")
    state_events: Named[StateRule] = Field(
        default_factory=dict, description="states and verdicts of jobs"
    )
    checkpoint_events: Named[CheckpointRule] = Field(
        default_factory=dict, description="complete checkpoints"
    )
    metric_events: Named[MetricRule] = Field(
        default_factory=dict, description="loss, speed, learning rate"
    )
    inactivity_events: Named[InactivityRule] = Field(
        default_factory=dict, description="jobs without output"
    )
    session_events: Named[SessionRule] = Field(
        default_factory=dict, description="the session as a whole"
    )

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        seen: set[str] = set()
        for kind in Rules.model_fields:
            for name in getattr(self, kind):
                if name in seen:
                    raise ValueError(f"two rules are called `{name}`: give one another name")
                seen.add(name)
        return self


def named(rules: Rules) -> Iterator[tuple[str, RuleBase]]:
    """All rules that are not switched off, by name."""
    for kind in type(rules).model_fields:
        section = getattr(rules, kind)
        if isinstance(section, dict):
            yield from ((name, rule) for name, rule in section.items() if rule is not None)
