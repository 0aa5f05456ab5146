"""Metric rules: logged values against expected ones. Pure functions of a job's tail."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import sqrt
from operator import itemgetter
from statistics import mean, median, stdev
from typing import NamedTuple

from autoexp.rules.metric_tests import (
    Continuity,
    LossAbove,
    MetricTest,
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
    grad_norm: float | None = None
    tokens_per_s: float | None = None
    tflops: float | None = None
    mfu: float | None = None


class Before(NamedTuple):
    """What was logged before a start: by the job itself, or by the parent of a branch."""

    iteration: int
    """The checkpoint to begin from."""
    losses: tuple[float, ...]
    """The last ones up to there."""
    learning_rate: float | None


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
    before: Before | None = None
    """What was logged before the attempt's start; None where nothing can be compared with it."""
    first_logged: int | None = None
    """The first iteration that the attempt logged."""


def window(rule: MetricRule) -> int:
    """Number of logged iterations that a rule looks at, including the last good one."""
    test = rule.tests[0]
    return test.logged + (test.over if isinstance(test, Spike | ThroughputBelow) else 1)


def alarm(rule: MetricRule, tail: Sequence[Logged], known: Expectation) -> Alarm | None:
    """Evaluate a metric test on a tail that ends with the iteration that was just logged."""
    test = rule.tests[0]
    if len(tail) < test.logged:
        return None
    tail = _named(test, tail)
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
        case Continuity():
            return _continuity(test, tail, known)
        case OffSchedule():
            return _off_schedule(test, recent, last_good, known)


def _named(test: MetricTest, tail: Sequence[Logged]) -> Sequence[Logged]:
    """The tail with the value that a test names in the place of the usual one."""
    match test:
        case LossAbove(of="grad_norm") | Spike(of="grad_norm"):
            return [row._replace(loss=row.grad_norm) for row in tail]
        case ThroughputBelow(of="tokens_per_s"):
            return [row._replace(seconds=_inverse(row.tokens_per_s)) for row in tail]
        case ThroughputBelow(of="tflops"):
            return [row._replace(seconds=_inverse(row.tflops)) for row in tail]
        case ThroughputBelow(of="mfu"):
            return [row._replace(seconds=_inverse(row.mfu)) for row in tail]
    return tail


def _inverse(speed: float | None) -> float | None:
    return 1 / speed if speed else None


def of_validation(rule: MetricRule) -> bool:
    """True if a rule is about validation losses, which have lines of their own."""
    return getattr(rule.tests[0], "of", None) == "validation_loss"


def value_of(rule: MetricRule) -> str:
    """The logged number that a rule is about."""
    test = rule.tests[0]
    return "learning_rate" if isinstance(test, OffSchedule) else getattr(test, "of", "loss")


_IN_WORDS = {
    "validation_loss": "validation loss",
    "learning_rate": "learning rate",
    "seconds": "seconds per iteration",
    "grad_norm": "gradient norm",
    "tokens_per_s": "tokens per second",
    "tflops": "TFLOP/s",
    "mfu": "model FLOPs utilization",
}


def unfed(rules: Mapping[str, MetricRule | None], logged: frozenset[str]) -> list[str]:
    """Sentences on rules that can never fire: the trainer does not log what they are about."""
    return [
        f"rule {name} never fires: what this trainer logs has no {_IN_WORDS.get(value, value)}"
        + _instead(rule, logged)
        for name, rule in rules.items()
        if rule is not None and (value := value_of(rule)) not in logged
    ]


def _instead(rule: MetricRule, logged: frozenset[str]) -> str:
    """The numbers of the same kind that it does log."""
    speeds = ("seconds", "tokens_per_s", "tflops", "mfu")
    there = [name for name in speeds if name in logged]
    if rule.throughput_below is None or not there:
        return ""
    return f"; `of: {there[0]}` would"


_LEAST_SPREAD = 0.002  # of the mean: a loss that hardly moves has a spread of rounding
_LEAST_BEFORE = 5  # losses that say what is usual
_SAME_RATE = 1.1  # times the parent's: above it the loss may well rise


def _continuity(test: Continuity, tail: Sequence[Logged], known: Expectation) -> Alarm | None:
    """The middle one of the first losses against those before: lost weights begin far above."""
    before, first = known.before, known.first_logged
    if before is None or first is None or len(before.losses) < _LEAST_BEFORE:
        return None
    rows = [row for row in tail if row.iteration >= first]
    losses = [row.loss for row in rows if row.loss is not None]
    if len(rows) != test.logged or not losses:
        return None
    rate, parents = rows[0].learning_rate, before.learning_rate
    if rate is not None and parents is not None and rate > _SAME_RATE * parents:
        return None
    usual = before.losses[-test.over :]
    middle = mean(usual[-_LEAST_BEFORE:])
    # Of one loss to the next: a loss that falls is spread widely, and not by noise.
    noise = stdev(after - loss for loss, after in pairwise(usual)) / sqrt(2)
    spread = max(noise, _LEAST_SPREAD * abs(middle))
    if median(losses) <= middle + test.spreads * spread:
        return None
    message = (
        f"starts at {losses[0]:.4g}, and before iteration {before.iteration} the loss was "
        f"{middle:.4g} ± {spread:.1g}: weights or data are not what was saved there"
    )
    return Alarm(losses[0], middle, None, message)


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
    usual = [row.loss for row in before if row.loss is not None]
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
    usual = [row.seconds for row in before if row.seconds is not None]
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
    last = recent[-1]
    seen, planned = last.learning_rate, known.planned_rate(last.iteration)
    if planned is None:
        planned = _nearest_plan(last, known)
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
