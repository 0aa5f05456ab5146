"""Checks conditions: true, not yet, or never. Reads files, changes nothing."""

import glob
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from autoexp.extensions.bases import Never, OwnCondition, Situation
from autoexp.logs.linear import LinePattern
from autoexp.logs.numbers import number
from autoexp.rules.conditions import (
    AllOf,
    AnyOf,
    CommandSucceeds,
    CommandTest,
    Condition,
    ContentTest,
    DiedAtStart,
    Elapsed,
    FileContains,
    FileExists,
    Glob,
    Job,
    JobTest,
    MaxAttempts,
    MaxWithoutProgress,
    NoneOf,
    QuietFor,
    Value,
    ValueTest,
)
from autoexp.rules.durations import spoken
from autoexp.storage import atomic
from autoexp.templates import divided, fill

_LOOKED_AT = 1 << 20  # bytes of a file whose content is asked for
_SHOWN = 40  # characters of a value that is no number


class Answer(Enum):
    """The state of a condition now."""

    HOLDS = "holds"
    NOT_YET = "not yet"
    NEVER = "never"


class Checked(NamedTuple):
    """An answer, with what the condition waits for or why it never holds."""

    answer: Answer
    reason: str = ""


class JobFacts(NamedTuple):
    """State and verdict of a job."""

    state: str
    verdict: str | None


class Facts(NamedTuple):
    """Facts that conditions are checked against: taken at one moment, usable in any thread."""

    now: datetime
    asked_at: datetime
    acted_at: datetime | None
    """Time of the rule's last action on this job."""
    values: Mapping[str, str]
    attempts: int
    attempts_without_progress: int
    jobs: Mapping[str, JobFacts]
    directory: Path
    """Directory that relative paths start from."""
    commands: Callable[[CommandTest], bool | None]
    """True if a command succeeded last; None: it has not been tried, or its result is too old."""
    start_exception: Callable[[], str | None] = lambda: None
    """The exception of which the job died before its first iteration, from its log."""
    captured: frozenset[str] = frozenset()
    """Names of values that come from a log or the scheduler, and may be anything."""


class _LeadsOut(Exception):
    """A captured value that leads to another directory."""


HOLDS = Checked(Answer.HOLDS)


def check_all(conditions: Sequence[Condition], facts: Facts) -> Checked:
    """Check all: one that never holds decides, then one that does not hold yet."""
    answers = [check(condition, facts) for condition in conditions]
    for wanted in (Answer.NEVER, Answer.NOT_YET):
        for checked in answers:
            if checked.answer is wanted:
                return checked
    return HOLDS


def check(condition: Condition, facts: Facts) -> Checked:
    """Check one condition."""
    try:
        return _check(condition, facts)
    except _LeadsOut as error:
        return Checked(Answer.NEVER, str(error))


def _check(condition: Condition, facts: Facts) -> Checked:
    match condition:
        case Value(value=test):
            return _value(test, facts)
        case FileExists(file_exists=path):
            where = _path(path, facts)
            return _wait_unless(_exists(where), f"waits for {where}")
        case Glob(glob=test):
            values = {name: glob.escape(value) for name, value in facts.values.items()}
            pattern = _path(test.pattern, facts._replace(values=values))
            found = _count(pattern)
            return _wait_unless(
                found >= test.at_least, f"waits for {test.at_least} files {pattern}, has {found}"
            )
        case FileContains(file_contains=test):
            return _content(test, facts)
        case Elapsed(elapsed=seconds):
            passed = (facts.now - facts.asked_at).total_seconds()
            return _wait_unless(passed >= seconds, f"waits {spoken(seconds)} after the event")
        case QuietFor(quiet_for=seconds):
            last = facts.acted_at
            quiet = last is None or (facts.now - last).total_seconds() >= seconds
            return _wait_unless(quiet, f"waits until {spoken(seconds)} after its last action")
        case MaxAttempts(max_attempts=most):
            return _never_unless(facts.attempts < most, f"{facts.attempts} attempts of {most} made")
        case MaxWithoutProgress(max_attempts_without_progress=most):
            without = facts.attempts_without_progress
            text = f"{without} attempts in a row without a new checkpoint"
            return _never_unless(without < most, text)
        case DiedAtStart(died_at_start=wanted):
            return _died_at_start(facts.start_exception(), wanted)
        case Job(job=test):
            return _job(test, facts)
        case CommandSucceeds(command=test):
            succeeded = facts.commands(test)
            return _wait_unless(bool(succeeded), f"waits for `{' '.join(test.run)}` to succeed")
        case AllOf(all_of=inner):
            return check_all(inner, facts)
        case AnyOf(any_of=inner):
            return _any_of(inner, facts)
        case NoneOf(none_of=inner):
            return _none_of(inner, facts)
        case OwnCondition():
            return _own(condition, facts)


def _own(condition: OwnCondition, facts: Facts) -> Checked:
    """The answer of a condition that a package brings."""
    situation = Situation(
        now=facts.now,
        asked_at=facts.asked_at,
        acted_at=facts.acted_at,
        values=facts.values,
        states={name: job.state for name, job in facts.jobs.items()},
        verdicts={name: job.verdict for name, job in facts.jobs.items()},
        attempts=facts.attempts,
        directory=facts.directory,
    )
    try:
        waits_for = condition.waits_for(situation)
    except Never as never:
        return Checked(Answer.NEVER, str(never))
    return HOLDS if waits_for is None else Checked(Answer.NOT_YET, str(waits_for))


def _wait_unless(holds: bool, reason: str) -> Checked:
    return HOLDS if holds else Checked(Answer.NOT_YET, reason)


def _never_unless(holds: bool, reason: str) -> Checked:
    return HOLDS if holds else Checked(Answer.NEVER, reason)


def _died_at_start(exception: str | None, wanted: bool) -> Checked:
    if exception is None:
        return _never_unless(not wanted, "it did not die of an exception at its start")
    return _never_unless(wanted, f"it died before its first iteration, of {exception}")


def _path(template: str, facts: Facts) -> Path:
    """The path that a template means; its parts in front of a captured value name a directory.

    Raises _LeadsOut where what is captured leads out of that, links included.
    """
    both = divided(template, facts.captured)
    if both is None:
        return facts.directory / fill(template, facts.values)
    directory = facts.directory / fill(both[0], facts.values)
    relative = fill(both[1], facts.values)
    path = directory / relative
    try:
        leads_out = not path.resolve().is_relative_to(directory.resolve())
    except (OSError, ValueError, RuntimeError):
        leads_out = False  # nothing is there: no file can have such a name
    if leads_out or relative.startswith("/") or ".." in relative.split("/"):
        raise _LeadsOut(f"{relative[:_SHOWN]!r} leads out of {directory}")
    return path


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False  # no file can have such a name, or nobody can look there now


def _count(pattern: Path) -> int:
    """Number of files that match a pattern; 0 for an invalid pattern."""
    try:
        return sum(1 for _ in Path(pattern.anchor).glob(str(pattern)[len(pattern.anchor) :]))
    except (OSError, ValueError, RecursionError):  # the last: hundreds of folders in each other
        return 0


def _value(test: ValueTest, facts: Facts) -> Checked:
    text = facts.values.get(test.name, "")
    compares = test.above is not None or test.below is not None
    if compares and number(text.encode(errors="replace")) is None:
        return Checked(Answer.NEVER, f"{test.name} is {text[:_SHOWN]!r}, which is not a number")
    return _never_unless(_value_fits(test, text), f"{test.name} does not fit")


def _value_fits(test: ValueTest, text: str) -> bool:
    if test.equals is not None and not _same(test.equals, text):
        return False
    if test.one_of is not None and not any(_same(each, text) for each in test.one_of):
        return False
    if test.matches is not None:
        shown = text.replace("\n", " ").encode(errors="backslashreplace")
        if _pattern(test.matches).search(shown) is None:
            return False
    if test.above is None and test.below is None:
        return True
    value = number(text.encode(errors="replace"))
    if value is None:
        return False
    above = test.above is None or value > test.above
    return above and (test.below is None or value < test.below)


@lru_cache
def _pattern(pattern: str) -> LinePattern:
    return LinePattern(pattern)


def _same(wanted: str | int | float, text: str) -> bool:
    if isinstance(wanted, str):
        return wanted == text
    return number(text.encode(errors="replace")) == wanted


def _content(test: ContentTest, facts: Facts) -> Checked:
    path, text = _path(test.path, facts), fill(test.text, facts.values)
    waits = f"waits for {text!r} in {path}"
    try:
        with atomic.open_to_read(path) as file:
            return _wait_unless(text.encode() in file.read(_LOOKED_AT), waits)
    except (OSError, ValueError):
        return Checked(Answer.NOT_YET, waits)  # not there, or no name that a file can have


def _job(test: JobTest, facts: Facts) -> Checked:
    name = fill(test.name, facts.values)
    job = facts.jobs.get(name)
    wanted = " or ".join((*test.state, *test.verdict))
    if job is None:
        return Checked(Answer.NOT_YET, f"waits for a job {name} to be {wanted}")
    if job.state in test.state or (job.verdict is not None and job.verdict in test.verdict):
        return HOLDS
    if job.verdict is not None and not test.state:
        return Checked(Answer.NEVER, f"{name} has {job.verdict}, not {wanted}")
    return Checked(Answer.NOT_YET, f"waits for {name} to be {wanted}")


def _any_of(inner: Sequence[Condition], facts: Facts) -> Checked:
    answers = [check(condition, facts) for condition in inner]
    for wanted in (Answer.HOLDS, Answer.NOT_YET):
        for checked in answers:
            if checked.answer is wanted:
                return checked
    return answers[0]


_OF_THE_ATTEMPT = (MaxAttempts, MaxWithoutProgress, DiedAtStart)


def _none_of(inner: Sequence[Condition], facts: Facts) -> Checked:
    holding = [each for each in inner if check(each, facts).answer is Answer.HOLDS]
    if not holding:
        return HOLDS
    for condition in holding:
        if _is_of_the_attempt(condition, facts):
            # It changes once the attempt is judged, which waits for this answer.
            return Checked(Answer.NEVER, f"{_text(condition)} holds")
    return Checked(Answer.NOT_YET, f"waits until {_text(holding[0])} does not hold")


def _is_of_the_attempt(holding: Condition, facts: Facts) -> bool:
    if isinstance(holding, AnyOf):
        held = (each for each in holding.any_of if check(each, facts).answer is Answer.HOLDS)
        return any(_is_of_the_attempt(each, facts) for each in held)
    if isinstance(holding, NoneOf):
        return all(_is_of_the_attempt(each, facts) for each in holding.none_of)
    return isinstance(holding, _OF_THE_ATTEMPT)


def _text(condition: Condition) -> str:
    return ", ".join(type(condition).model_fields)
