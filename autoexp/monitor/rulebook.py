"""The rules of a session: from its configuration, and implied by its plan."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from autoexp.logs.matcher import Matcher, matcher
from autoexp.monitor.decide import Asked, Rule
from autoexp.rules.actions import ENDS_AN_ATTEMPT, Keep, Start
from autoexp.rules.events import CheckpointComplete, Event, JobReady
from autoexp.rules.metrics import window
from autoexp.rules.rules import (
    CheckpointRule,
    InactivityRule,
    LogRule,
    MetricRule,
    OnCheckpoint,
    OnReady,
    RuleBase,
    SessionRule,
)
from autoexp.rules.ruleset import Rules, named

if TYPE_CHECKING:
    from autoexp.jobs.spec import JobSpec


class Watched(NamedTuple):
    """Data that the rules need from one job: log patterns, a mark, the length of its tail."""

    lines: Matcher
    log_rules: dict[str, LogRule]
    metric_rules: dict[str, MetricRule]
    inactivity_rules: dict[str, InactivityRule]
    window: int
    """Number of logged iterations that metric rules look back."""


class RuleBook:
    """The rules, applied to the session's current jobs."""

    def __init__(self, rules: Rules, jobs: Iterable["JobSpec"]) -> None:
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
                Asked(step.action, step.when, step.within)
                for step in rule.actions
                if step not in planned
            )
            yield Rule(name, rule, then, self._jobs_of(rule))  # type: ignore[arg-type]

    def _jobs_of(self, rule: RuleBase) -> frozenset[str] | None:
        if not rule.jobs:
            return None
        return frozenset(name for name, spec in self._specs.items() if is_about(rule, spec))

    def watched(self, spec: "JobSpec") -> Watched:
        """The patterns to look for in a job's log; jobs with the same rules share them."""
        found = self._by_job.get(spec.name)
        if found is None:
            found = self._by_job[spec.name] = self._watched_by(spec)
        return found

    def _watched_by(self, spec: "JobSpec") -> Watched:
        own = {name: rule for name, rule in self._named.items() if is_about(rule, spec)}
        key = tuple(own)
        if key not in self._watched:
            logs = {name: rule for name, rule in own.items() if isinstance(rule, LogRule)}
            metrics = {name: rule for name, rule in own.items() if isinstance(rule, MetricRule)}
            self._watched[key] = Watched(
                lines=matcher(rule.wanted(name) for name, rule in logs.items()),
                log_rules=logs,
                metric_rules=metrics,
                inactivity_rules={n: r for n, r in own.items() if isinstance(r, InactivityRule)},
                window=max((window(rule) for rule in metrics.values()), default=0),
            )
        return self._watched[key]

    def of(self, event: Event) -> list[Rule]:
        """The rules that match an event."""
        starts: list[Rule] = []
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


def is_about(rule: RuleBase, spec: "JobSpec") -> bool:
    """True if a rule applies to a job, by its name or its kind."""
    return not rule.jobs or spec.name in rule.jobs or str(spec.kind) in rule.jobs


def implied(jobs: Iterable["JobSpec"]) -> tuple[Rule, ...]:
    """The rules that planned jobs imply: they start jobs that wait for others, and pin inputs."""
    rules: list[Rule] = []
    for job in jobs:
        rules += _keeps(job)
        if (on := _start_of(job)) is not None:
            start = Asked(Start(job=job.name), job.start_when, job.start_within_s)
            rules.append(Rule(f"start-{job.name}", on, (start,)))
    return tuple(rules)


def _keeps(job: "JobSpec") -> list[Rule]:
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


def _start_of(job: "JobSpec") -> OnCheckpoint | OnReady | None:
    """A branch or merge starts at its parent's checkpoint, others once what they wait for is."""
    if job.awaits:
        return OnReady(job=job.name)
    if job.parent is not None and job.starts_at is not None:
        return OnCheckpoint(job=job.parent, iteration=job.starts_at)
    return None
