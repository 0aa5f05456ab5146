"""Decides which actions an event calls for. Pure: no clock, no disk, no Prefect."""

import hashlib
import re
from collections.abc import Collection, Iterable
from typing import NamedTuple

from autoexp.jobs.record import JobRecord
from autoexp.rules.actions import ENDS_AN_ATTEMPT, Action, Fail, Finish, Restart
from autoexp.rules.conditions import Condition
from autoexp.rules.events import Event
from autoexp.rules.rules import AnyRule
from autoexp.session.action_records import ActionRecord
from autoexp.storage import atomic

_LONGEST_KEY = atomic.LONGEST_NAME - len(".json")
_HASH_LENGTH = 16


class Asked(NamedTuple):
    """One action of a rule, with its conditions."""

    action: Action
    when: tuple[Condition, ...] = ()
    within_s: float = 86400.0


class Rule(NamedTuple):
    """A rule: when an event matches, its actions are done once per event."""

    name: str
    on: AnyRule
    then: tuple[Asked, ...]
    jobs: frozenset[str] | None = None
    """Names of the jobs that it applies to; None: all, and the session itself."""

    def fires(self, event: Event) -> bool:
        """True if the rule matches `event`."""
        return (self.jobs is None or event.job in self.jobs) and self.on.fires(event, self.name)


def action_key(rule: str, event_key: str, position: int) -> str:
    """Identity of an action, fit for a file name: the rule, the event and the place in the rule.

    One that is too long for a file's name is its head and a hash of the whole.
    """
    whole = f"{rule}--{event_key}--{position}"
    key = re.sub(r"[^A-Za-z0-9._-]", "_", whole)
    if len(key) <= _LONGEST_KEY:
        return key
    tail = f"--{hashlib.sha256(whole.encode()).hexdigest()[:_HASH_LENGTH]}--{position}"
    return key[: _LONGEST_KEY - len(tail)] + tail


def decide(
    event: Event, rules: Iterable[Rule], history: Collection[str] = ()
) -> list[ActionRecord]:
    """The actions that `event` calls for and that are not in `history` (keys of actions)."""
    decided = [
        ActionRecord(
            key=action_key(rule.name, event.key, position),
            rule=rule.name,
            event=event,
            action=asked.action,
            when=asked.when,
            within_s=asked.within_s,
        )
        for rule in rules
        if rule.fires(event)
        for position, asked in enumerate(rule.then)
    ]
    return [record for record in decided if record.key not in history]


def may_change_end(action: Action, job: JobRecord) -> bool:
    """True if a pending action may change what the end of an attempt means."""
    if job.restart is None:
        return isinstance(action, ENDS_AN_ATTEMPT)
    # A restart is requested: it may yet become one with a roll back, or be overruled.
    rolls_back = isinstance(action, Restart) and action.roll_back
    return isinstance(action, Finish | Fail) or (rolls_back and job.restart.roll_back_to is None)
