"""`actions/<key>.json`: one action for one event and rule, and how far it has come."""

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from autoexp import schema
from autoexp.events import Event
from autoexp.jobs import now
from autoexp.rules.actions import Action
from autoexp.rules.conditions import Condition


class ActionStatus(StrEnum):
    """Where an action stands."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class ActionRecord(BaseModel):
    """What is to be done, because of what, and what came of it."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = schema.VERSION
    key: str
    rule: str
    event: Event
    action: Action
    when: tuple[Condition, ...] = ()
    within_s: float = 86400.0
    asked_at: datetime = Field(default_factory=now)
    """When the event was seen: deadlines count from here, across restarts of the monitor."""
    status: ActionStatus = ActionStatus.PENDING
    attempt: int | None = None
    """The attempt that it is about, for actions that end one."""
    reason: str | None = None
    """Why it waits, or failed."""
    result: str | None = None
    """What came of it, such as the last lines of a command's output."""
    attempts: int = 0
    updated_at: datetime = Field(default_factory=now)

    @property
    def is_settled(self) -> bool:
        return self.status in (ActionStatus.DONE, ActionStatus.FAILED)
