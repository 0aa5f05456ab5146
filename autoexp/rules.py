"""Rules: which events lead to which actions. Deciding is pure: no clock, no disk, no Prefect."""

import re
from collections.abc import Collection, Iterable
from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from autoexp import schema
from autoexp.backends.base import Closed
from autoexp.events import CheckpointComplete, Event
from autoexp.jobs import now
from autoexp.plan import Plan


class OnCheckpoint(Closed):
    """Matches one checkpoint of one job."""

    kind: Literal["checkpoint"] = "checkpoint"
    job: str
    iteration: int

    def matches(self, event: Event) -> bool:
        """Whether `event` is this checkpoint, complete."""
        return (
            isinstance(event, CheckpointComplete)
            and event.job == self.job
            and event.iteration == self.iteration
        )


class Launch(Closed):
    """Start a planned job of the session from the checkpoint of the event."""

    kind: Literal["launch"] = "launch"
    job: str


class Rule(Closed):
    """When an event matches, do these actions, once per event."""

    name: str
    on: OnCheckpoint
    then: tuple[Launch, ...] = Field(min_length=1)


class ActionStatus(StrEnum):
    """Where an action stands."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class ActionRecord(BaseModel):
    """`actions/<key>.json`: one action for one event and rule, and how far it has come."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = schema.VERSION
    key: str
    rule: str
    event: CheckpointComplete
    action: Launch
    status: ActionStatus = ActionStatus.PENDING
    reason: str | None = None
    attempts: int = 0
    updated_at: datetime = Field(default_factory=now)


def action_key(rule: str, event_key: str, position: int) -> str:
    """Identity of an action, fit for a file name: the rule, the event and the place in the rule."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", f"{rule}--{event_key}--{position}")


def decide(
    event: Event, rules: Iterable[Rule], history: Collection[str] = ()
) -> list[ActionRecord]:
    """The actions that `event` calls for and that are not in `history` (keys of actions)."""
    if not isinstance(event, CheckpointComplete):
        return []
    decided = [
        ActionRecord(
            key=action_key(rule.name, event.key, position),
            rule=rule.name,
            event=event,
            action=action,
        )
        for rule in rules
        if rule.on.matches(event)
        for position, action in enumerate(rule.then)
    ]
    return [record for record in decided if record.key not in history]


def rules_of(plan: Plan) -> tuple[Rule, ...]:
    """The rules that a plan implies: each cooldown starts at its parent's checkpoint."""
    return tuple(
        Rule(
            name=f"start-{job.name}",
            on=OnCheckpoint(job=job.parent, iteration=job.branch.iteration),
            then=(Launch(job=job.name),),
        )
        for job in plan.cooldowns
        if job.parent is not None and job.branch is not None
    )
