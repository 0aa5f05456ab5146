"""Metric rules: logged values against expected ones. Pure functions of a job's tail."""

from collections.abc import Callable, Sequence
from operator import itemgetter
from statistics import median
from typing import NamedTuple

from autoexp.rules.metric_tests import (
    LossAbove,
    NotANumber,
    OffSchedule,
    Spike,
    ThroughputBelow,
)
from autoexp.rules.rules import MetricRule


class Logged(NamedTuple):
    """A logged iteration, as metric rules see it."""

    iteration: int
    loss: float | None
    """None: not a number, or left out."""
    learning_rate: float | None
    seconds: float | None


_SHOWN = 40  # characters of a number
_LOSS: Callable[[Logged], float] = itemgetter(1)
_SECONDS: Callable[[Logged], float] = itemgetter(3)


class Alarm(NamedTuple):
    """An alarm: the newest value, the expected one, and since when."""

    value: float | None
    expected: float | None
    last_good: int | None
    """The last logged iteration before the trouble; None: nothing good is in the tail."""
    message: str


class Expectation(NamedTuple):
    """Expectations for a job, besides its tail."""

    logs_loss: bool
    """True if a loss was ever logged: only then is a missing one an alarm."""
    planned_rate: Callable[[int], float | None]
    """The planned learning rate at an iteration; None where there is no plan."""
    peak_rate: float | None


def window(rule: MetricRule) -> int:
    """Number of logged iterations that a rule looks at, including the last good one."""
    test = rule.tests[0]
    return test.logged + (test.over if isinstance(test, Spike | ThroughputBelow) else 1)


def alarm(rule: MetricRule, tail: Sequence[Logged], known: Expectation) -> Alarm | None:
    """Evaluate a metric test on a tail that ends with the iteration that was just logged."""
    test = rule.tests[0]
    if len(tail) < test.logged:
        return None
    recent = tail[-test.logged :]
    last_good = tail[-test.logged - 1].iteration if len(tail) > test.logged else None
    match test:
        case NotANumber():
            return _not_a_number(recent, last_good, known)
        case LossAbove():
            return _loss_above(test, recent, last_good)
        case Spike():
            return _spike(test, tail, recent, last_good)
        case ThroughputBelow():
            return _slow(test, tail, recent, last_good)
        case OffSchedule():
            return _off_schedule(test, recent, last_good, known)


def _not_a_number(
    recent: Sequence[Logged], last_good: int | None, known: Expectation
) -> Alarm | None:
    if recent[-1].loss is not None or not known.logs_loss:
        return None
    if any(row.loss is not None for row in recent):
        return None
    message = f"the loss is NaN or missing since iteration {recent[0].iteration}"
    return Alarm(None, None, last_good, message)


def _loss_above(test: LossAbove, recent: Sequence[Logged], last_good: int | None) -> Alarm | None:
    if recent[0].iteration < test.after:
        return None
    losses = [row.loss for row in recent if row.loss is not None and row.loss > test.value]
    if len(losses) < len(recent):
        return None
    message = f"loss {losses[-1]:.4g} is above {test.value:g} since {recent[0].iteration}"
    return Alarm(losses[-1], test.value, last_good, message)


def _spike(
    test: Spike, tail: Sequence[Logged], recent: Sequence[Logged], last_good: int | None
) -> Alarm | None:
    losses = [row.loss for row in recent if row.loss is not None]
    before = tail[-test.logged - test.over : -test.logged]
    if len(losses) < len(recent):
        return None
    least = min(losses)
    if _is_usual(least, test.times, before, _LOSS):
        return None
    usual = [loss for _, loss, _, _ in before if loss is not None]
    if len(usual) < test.over:
        return None
    middle = median(usual)
    # A median of zero or less has no multiple.
    if middle <= 0 or least <= test.times * middle:
        return None
    message = f"loss {losses[-1]:.4g} is {losses[-1] / middle:.1f} times the median {middle:.4g}"
    return Alarm(losses[-1], middle, last_good, message)


def _slow(
    test: ThroughputBelow, tail: Sequence[Logged], recent: Sequence[Logged], last_good: int | None
) -> Alarm | None:
    before = tail[-test.logged - test.over : -test.logged]
    now = [row.seconds for row in recent if row.seconds is not None]
    if len(now) < len(recent):
        return None
    # A share of the throughput: half the speed is twice the time.
    least = min(now) * test.share
    if _is_usual(least, 1, before, _SECONDS):
        return None
    usual = [seconds for _, _, _, seconds in before if seconds is not None]
    if len(usual) < test.over:
        return None
    middle = median(usual)
    if middle <= 0 or least <= middle:
        return None  # 0 is what was rounded to nothing
    message = f"{now[-1]:.3g} s per iteration, where {middle:.3g} s is usual"
    return Alarm(now[-1], middle, last_good, message)


def _is_usual(
    value: float, times: float, before: Sequence[Logged], number: Callable[[Logged], float]
) -> bool:
    """True if it is at most `times` the smallest value before, so not above their median either.

    Finding the median takes longer; it is left to the caller also where numbers are missing.
    """
    try:
        return value <= times * min(map(number, before))
    except (TypeError, ValueError):
        return False


def _off_schedule(
    test: OffSchedule, recent: Sequence[Logged], last_good: int | None, known: Expectation
) -> Alarm | None:
    if known.peak_rate is None:
        return None
    for row in recent:
        planned = _nearest_plan(row, known)
        if planned is None or row.learning_rate is None:
            return None
        if abs(row.learning_rate - planned) <= test.tolerance * known.peak_rate:
            return None
    seen, planned = recent[-1].learning_rate, known.planned_rate(recent[-1].iteration)
    message = f"learning rate {seen:.3e} at iteration {recent[-1].iteration}, planned {planned:.3e}"
    return Alarm(seen, planned, last_good, message)


def _nearest_plan(row: Logged, known: Expectation) -> float | None:
    """The planned rate of this step or the next: trainers differ in which one they log."""
    plans = [known.planned_rate(row.iteration + ahead) for ahead in (-1, 0, 1)]
    found = [plan for plan in plans if plan is not None]
    if not found or row.learning_rate is None:
        return None
    rate = row.learning_rate
    return min(found, key=lambda plan: abs(plan - rate))


def with_logged(tail: list[Logged], logged: Logged, window: int) -> list[Logged]:
    """The last logged iterations; a trainer that restarted begins a new tail.

    Progress bars show a step more than once: the last one counts.
    """
    if tail and logged.iteration <= tail[-1].iteration:
        tail = tail[:-1] if logged.iteration == tail[-1].iteration else []
    kept = tail[-window + 1 :] if window > 1 else []
    kept.append(logged)
    return kept


def smoothed(mean: float | None, value: float | None) -> float | None:
    """An exponentially weighted mean with one more value in it."""
    if mean is None or value is None:
        return mean if value is None else value
    return 0.9 * mean + 0.1 * value
