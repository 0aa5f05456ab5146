"""``actions/<key>.json`: one action for one event and rule, with its status."""

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from autoexp.model import now
from autoexp.rules.actions import Action, Save, Start
from autoexp.rules.conditions import Condition
from autoexp.rules.events import Event
from autoexp.storage import migrations


class ActionStatus(StrEnum):
    """The status of an action."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class ActionRecord(BaseModel):
    """An action, the event that it is for, and its result."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = migrations.VERSION
    key: str
    rule: str
    event: Event
    action: Action
    when: tuple[Condition, ...] = ()
    within_s: float = 86400.0
    asked_at: datetime = Field(default_factory=now)
    """Time of the event: deadlines count from here, across restarts of the monitor."""
    status: ActionStatus = ActionStatus.PENDING
    attempt: int | None = None
    """The attempt that it ends, if it ends one."""
    reason: str | None = None
    """Reason why it waits, or failed."""
    result: str | None = None
    """Its result, such as the last lines of a command's output."""
    attempts: int = 0
    updated_at: datetime = Field(default_factory=now)

    @property
    def is_settled(self) -> bool:
        return self.status in (ActionStatus.DONE, ActionStatus.FAILED)


class Actions(dict[str, ActionRecord]):
    """A session's actions by key; pending ones are found without a scan of those that are done."""

    def __init__(self) -> None:
        super().__init__()
        self._open: dict[str, None] = {}
        self._starts: dict[str, dict[str, None]] = {}
        self._saves: dict[str, dict[str, None]] = {}
        self._done_at: dict[tuple[str, str], datetime] = {}

    def __setitem__(self, key: str, action: ActionRecord) -> None:
        super().__setitem__(key, action)
        if action.is_settled:
            self._open.pop(key, None)
        else:
            self._open[key] = None
        if isinstance(action.action, Start):
            self._starts.setdefault(action.action.job, {})[key] = None
        if isinstance(action.action, Save):
            self._saves.setdefault(action.event.job, {})[key] = None
        if action.status is ActionStatus.DONE:
            place = (action.rule, action.event.job)
            self._done_at[place] = max(
                self._done_at.get(place, action.updated_at), action.updated_at
            )

    @property
    def pending(self) -> list[ActionRecord]:
        """Pending actions, including those that were running when a monitor died."""
        return [self[key] for key in self._open]

    @property
    def open_count(self) -> int:
        """Number of pending actions."""
        return len(self._open)

    def last_done(self, rule: str, job: str) -> datetime | None:
        """Time of a rule's last action on a job; None: there was none."""
        return self._done_at.get((rule, job))

    def starts_of(self, job: str) -> list[ActionRecord]:
        """The actions that start a job."""
        return [self[key] for key in self._starts.get(job, ())]

    def saves_of(self, job: str) -> list[ActionRecord]:
        """The actions that have a job save now."""
        return [self[key] for key in self._saves.get(job, ())]
