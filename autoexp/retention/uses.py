"""Who needs which checkpoint, and until when: branches, merges, stages, evaluations, actions.

Pure: what is asked of the session is in a `Situation`.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import NamedTuple

from autoexp.jobs.record import JobRecord
from autoexp.jobs.spec import JobSpec
from autoexp.retention.policy import Retention
from autoexp.rules.actions import Restart
from autoexp.rules.events import CheckpointComplete
from autoexp.rules.rules import RuleBase
from autoexp.rules.ruleset import Rules, named
from autoexp.states import Kind, Verdict

_PATHS = re.compile(r"/[^\s=,:;'\"\[\]{}]*")
"""Paths in a word of a command: `--load=/scratch/iter_0001000`."""
Place = tuple[str, int]
"""A job and an iteration of it."""


class Hold(NamedTuple):
    """A reason why a checkpoint stays."""

    why: str
    until: str | None = None
    """What ends it; None: it stays for good."""


class Situation(NamedTuple):
    """What the decision about checkpoints is made from."""

    retention: Retention
    jobs: Mapping[str, JobRecord]
    checkpoints: tuple[CheckpointComplete, ...]
    """Complete, and neither set aside nor deleted."""
    pinned: frozenset[Place] = frozenset()
    """Inputs of merges that the merge has its own copy of, by the merge's name."""
    asked: tuple[tuple[CheckpointComplete, str], ...] = ()
    """Actions that are not done, each with its event and its rule."""
    launched_from: Mapping[str, CheckpointComplete] = {}
    """Jobs that a rule launched at a checkpoint, by name."""
    may_roll_back: frozenset[str] = frozenset()
    """Jobs that a rule may set back to an earlier checkpoint."""
    requested: tuple[JobSpec, ...] = ()
    """Jobs of requests that the session is yet to take."""
    retried: frozenset[str] = frozenset()
    """Jobs that a request asks to try again, also one that was cancelled or has finished."""


def roll_back_rules(rules: Rules) -> list[RuleBase]:
    """The rules that may set a job back to an earlier checkpoint."""
    return [
        rule
        for _, rule in named(rules)
        if any(isinstance(e.action, Restart) and e.action.roll_back for e in rule.actions)
    ]


class Used(NamedTuple):
    """A use of a checkpoint."""

    place: Place
    hold: Hold


def uses(situation: Situation) -> Iterator[Used]:
    """All that still needs a checkpoint, and for good what `keep` says of branches."""
    for job in situation.jobs.values():
        start = _start(job, is_retried=job.spec.name in situation.retried)
        yield from _of_branch(job.spec, situation, start)
        yield from _of_stage(job.spec, start)
    for spec in situation.requested:
        if spec.name not in situation.jobs:
            soon = Hold(f"{spec.name} was asked for", f"{spec.name} has started")
            yield from _of_branch(spec, situation, soon)
            yield from _of_stage(spec, soon)
    yield from _named(situation)
    for event, rule in situation.asked:
        if rule:
            yield Used((event.job, event.iteration), Hold(f"rule {rule} acts on it", "it is done"))


def _start(job: JobRecord, *, is_retried: bool) -> Hold | None:
    """Why a job that has not started needs what it starts from; None: it needs it no longer."""
    name = job.spec.name
    if job.launched or (not is_retried and _is_done(job)):
        return None
    if job.is_over:
        return Hold(f"{name} did not start, and can be retried", f"{name} is retried or cancelled")
    return Hold(f"{name} starts from it", f"{name} has its own copy")


def _is_done(job: JobRecord) -> bool:
    """True if a job needs nothing more, unless somebody asks for it again."""
    return job.verdict is Verdict.FINISHED or job.was_cancelled


def _of_branch(spec: JobSpec, situation: Situation, hold: Hold | None) -> Iterator[Used]:
    if spec.parent is None or spec.starts_at is None:
        return
    inputs = spec.merge.iterations if spec.merge else (spec.starts_at,)
    for iteration in inputs:
        place = (spec.parent, iteration)
        if hold is not None and (spec.name, iteration) not in situation.pinned:
            yield Used(place, hold)
        if situation.retention.branch_points:
            yield Used(place, Hold("branch_points"))


def _of_stage(spec: JobSpec, hold: Hold | None) -> Iterator[Used]:
    late = () if spec.draft is None else spec.draft.late.values()
    for awaited in (*spec.awaits, *late):
        if awaited.checkpoint is not None and hold is not None:
            yield Used((awaited.job, awaited.checkpoint), hold)


def _named(situation: Situation) -> Iterator[Used]:
    """Uses by jobs that read a checkpoint where it lies: evaluations, conversions."""
    by_path = {event.path: (event.job, event.iteration) for event in situation.checkpoints}
    odd = [path for path in by_path if _PATHS.fullmatch(path) is None]
    kept = situation.retention.evaluated
    records = {name: (job.spec, job) for name, job in situation.jobs.items()}
    waiting = {spec.name: (spec, None) for spec in situation.requested}
    for name, (spec, job) in {**waiting, **records}.items():
        is_done = job is not None and _is_done(job) and name not in situation.retried
        evaluates = kept and spec.kind is Kind.EVALUATE
        if is_done and not evaluates:
            continue
        if spec.kind is Kind.UPLOAD and (job is None or job.launched):
            yield from _uploaded(spec, by_path)
        places = {p for word in _words(spec) for p in _places(word, by_path, odd)}
        if (event := situation.launched_from.get(name)) is not None:
            places.add((event.job, event.iteration))
        if evaluates:
            places |= {(a.job, a.checkpoint) for a in spec.awaits if a.checkpoint is not None}
        for place in places:
            if not is_done:
                failed = job is not None and job.is_over
                why = f"{name} has failed, and can be retried" if failed else f"{name} reads it"
                yield Used(place, Hold(why, f"{name} has finished"))
            if evaluates:
                yield Used(place, Hold("evaluated"))


def _uploaded(spec: JobSpec, by_path: Mapping[str, Place]) -> Iterator[Used]:
    """The checkpoints below a folder that is uploaded as a whole, from its start on."""
    named = {found.rstrip("/") for word in _words(spec) for found in _PATHS.findall(word)}
    hold = Hold(f"{spec.name} uploads it", f"{spec.name} has finished")
    for path, place in by_path.items():
        if any(str(parent) in named for parent in PurePosixPath(path).parents):
            yield Used(place, hold)


def _words(spec: JobSpec) -> Iterator[str]:
    yield from spec.command
    yield from spec.environment.values()
    if spec.draft is not None:
        yield from spec.draft.values.values()


def _places(word: str, by_path: Mapping[str, Place], odd: list[str]) -> Iterator[Place]:
    """The checkpoints that a word names, or a file inside of."""
    if "/" not in word:
        return
    for found in _PATHS.findall(word):
        for path in (found.rstrip("/"), *map(str, PurePosixPath(found).parents)):
            if path in by_path:
                yield by_path[path]
    for path in odd:
        if path in word:
            yield by_path[path]
