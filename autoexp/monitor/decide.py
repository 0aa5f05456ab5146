"""Decides which actions an event calls for, by the rules of a session.

Some rules are configured, and some are implied by its plan. Pure: no clock, no disk, no Prefect.
"""

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from autoexp.jobs.record import JobRecord
from autoexp.jobs.spec import JobSpec
from autoexp.logs.matcher import Matcher, matcher
from autoexp.rules.actions import (
    ENDS_AN_ATTEMPT,
    Action,
    Avoid,
    Fail,
    Finish,
    Keep,
    Launch,
    Restart,
    Save,
    Start,
)
from autoexp.rules.conditions import Condition
from autoexp.rules.events import (
    CheckpointComplete,
    Event,
    JobReady,
    NodesFoundSick,
    SaveAsked,
)
from autoexp.rules.metrics import of_validation, window
from autoexp.rules.rules import (
    AnyRule,
    CheckpointRule,
    InactivityRule,
    LogRule,
    MetricRule,
    OnCheckpoint,
    OnReady,
    OnSickNodes,
    RuleBase,
    SessionRule,
)
from autoexp.rules.ruleset import Rules, named
from autoexp.session.action_records import ActionRecord, ActionStatus
from autoexp.storage import atomic

_LONGEST_KEY = atomic.LONGEST_NAME - len(".json")
_HASH_LENGTH = 16
BRANCH = "branch"
"""The rule of the cooldowns that a save asked for."""


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


def branches(
    event: Event, saves: Iterable[ActionRecord], history: Collection[str] = ()
) -> list[ActionRecord]:
    """The cooldowns from the first checkpoint after each save that asked for one."""
    if not isinstance(event, CheckpointComplete):
        return []
    return [
        ActionRecord(
            key=key, rule=BRANCH, event=event, action=Launch(cooldown=save.action.cooldown)
        )
        for save in saves
        if isinstance(save.action, Save) and isinstance(save.event, SaveAsked)
        if save.action.cooldown is not None and save.event.job == event.job
        if save.status is not ActionStatus.FAILED and event.iteration > save.event.saved
        if (key := action_key(BRANCH, save.event.key, 0)) not in history
    ]


_AVOIDS = Rule("nodes", OnSickNodes(), (Asked(Avoid()),))
"""Implied by the check of nodes."""


class Watched(NamedTuple):
    """Data that the rules need from one job: log patterns, a mark, the length of its tail."""

    lines: Matcher
    log_rules: dict[str, LogRule]
    metric_rules: dict[str, MetricRule]
    """About progress lines."""
    validation_rules: dict[str, MetricRule]
    inactivity_rules: dict[str, InactivityRule]
    shortest_s: float
    """The shortest time of an inactivity rule; 0 where one counts progress."""
    window: int
    """Number of logged iterations that metric rules look back."""


class RuleBook:
    """The rules, applied to the session's current jobs."""

    def __init__(self, rules: Rules, jobs: Iterable[JobSpec]) -> None:
        self._specs = {spec.name: spec for spec in jobs}
        self._named = dict(named(rules))
        self._written = tuple(self._read())
        self._starts: dict[tuple[str, int], list[Rule]] = {}
        self._releases: dict[str, Rule] = {}
        for rule in implied(self._specs.values()):
            if isinstance(rule.on, OnCheckpoint):
                self._starts.setdefault((rule.on.job, rule.on.iteration), []).append(rule)
            elif isinstance(rule.on, OnReady):
                self._releases[rule.on.job] = rule
        self.ends_attempts = any(
            isinstance(asked.action, ENDS_AN_ATTEMPT)
            for rule in self._written
            for asked in rule.then
        )
        self.session_rules = {
            name: rule for name, rule in self._named.items() if isinstance(rule, SessionRule)
        }
        self._watched: dict[tuple[str, ...], Watched] = {}
        self._by_job: dict[str, Watched] = {}

    def _read(self) -> Iterator[Rule]:
        for name, rule in self._named.items():
            planned = list(rule.cooldowns()) if isinstance(rule, CheckpointRule) else []
            then = tuple(
                Asked(entry.action, entry.when, entry.within)
                for entry in rule.actions
                if entry not in planned
            )
            yield Rule(name, rule, then, self._jobs_of(rule))  # type: ignore[arg-type]

    def _jobs_of(self, rule: RuleBase) -> frozenset[str] | None:
        if not rule.jobs:
            return None
        return frozenset(name for name, spec in self._specs.items() if _is_about(rule, spec))

    def watched(self, spec: JobSpec) -> Watched:
        """The patterns to look for in a job's log; jobs with the same rules share them."""
        found = self._by_job.get(spec.name)
        if found is None:
            found = self._by_job[spec.name] = self._watched_by(spec)
        return found

    def _watched_by(self, spec: JobSpec) -> Watched:
        own = {name: rule for name, rule in self._named.items() if _is_about(rule, spec)}
        key = tuple(own)
        if key not in self._watched:
            logs = {name: rule for name, rule in own.items() if isinstance(rule, LogRule)}
            metrics = {name: rule for name, rule in own.items() if isinstance(rule, MetricRule)}
            quiet = {n: r for n, r in own.items() if isinstance(r, InactivityRule)}
            follows = any(rule.counts == "progress" for rule in quiet.values())
            self._watched[key] = Watched(
                lines=matcher(rule.wanted(name) for name, rule in logs.items()),
                log_rules=logs,
                metric_rules={n: rule for n, rule in metrics.items() if not of_validation(rule)},
                validation_rules={n: rule for n, rule in metrics.items() if of_validation(rule)},
                inactivity_rules=quiet,
                shortest_s=0.0 if follows else min((r.after for r in quiet.values()), default=0.0),
                window=max((window(rule) for rule in metrics.values()), default=0),
            )
        return self._watched[key]

    def of(self, event: Event) -> list[Rule]:
        """The rules that match an event."""
        starts: list[Rule] = []
        if isinstance(event, NodesFoundSick):
            starts = [_AVOIDS]
        if isinstance(event, CheckpointComplete):
            # A thousand cooldowns have a thousand rules of their own: looked up, not tried.
            starts = self._starts.get((event.job, event.iteration), [])
        elif isinstance(event, JobReady) and event.job in self._releases:
            starts = [self._releases[event.job]]
        return [*starts, *(rule for rule in self._written if rule.fires(event))]

    def starts_any(self, event: CheckpointComplete, names: set[str]) -> bool:
        """True if a checkpoint starts one of these jobs."""
        starts = self._starts.get((event.job, event.iteration), [])
        return any(
            isinstance(asked.action, Start | Keep) and asked.action.job in names
            for rule in starts
            for asked in rule.then
        )


def _is_about(rule: RuleBase, spec: JobSpec) -> bool:
    return rule.is_about(spec.name, str(spec.kind))


def implied(jobs: Iterable[JobSpec]) -> tuple[Rule, ...]:
    """The rules that planned jobs imply: they start jobs that wait for others, and pin inputs."""
    rules: list[Rule] = []
    for job in jobs:
        rules += _keeps(job)
        if (on := _start_of(job)) is not None:
            start = Asked(Start(job=job.name), job.start_when, job.start_within_s)
            rules.append(Rule(f"start-{job.name}", on, (start,)))
    return tuple(rules)


def _keeps(job: JobSpec) -> list[Rule]:
    """The checkpoints of a merge before its last one, each pinned before it may be deleted."""
    if job.merge is None or job.parent is None:
        return []
    return [
        Rule(
            f"keep-{job.name}",
            OnCheckpoint(job=job.parent, iteration=iteration),
            (Asked(Keep(job=job.name)),),
        )
        for iteration in job.merge.iterations[:-1]
    ]


def _start_of(job: JobSpec) -> OnCheckpoint | OnReady | None:
    """A branch or merge starts at its parent's checkpoint, others once what they wait for is."""
    if job.awaits:
        return OnReady(job=job.name)
    if job.parent is not None and job.starts_at is not None:
        return OnCheckpoint(job=job.parent, iteration=job.starts_at)
    return None


def may_change_end(action: Action, job: JobRecord) -> bool:
    """True if a pending action may change what the end of an attempt means."""
    if job.restart is None:
        return isinstance(action, ENDS_AN_ATTEMPT)
    # A restart is requested: it may yet become one with a roll back, or be overruled.
    rolls_back = isinstance(action, Restart) and action.roll_back
    return isinstance(action, Finish | Fail) or (rolls_back and job.restart.roll_back_to is None)
