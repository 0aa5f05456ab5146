"""Metric rules: pure functions of the last logged iterations."""

from typing import Any

import pytest

from autoexp.backends.demo import DemoBackend
from autoexp.backends.protocol import Branch
from autoexp.demo.model import Schedule
from autoexp.rules.metrics import Expectation, Logged, alarm, unfed, window
from autoexp.rules.rules import MetricRule

NOTHING = Expectation(logs_loss=True, planned_rate=lambda _: None, peak_rate=None)
BRANCH = Branch(iteration=100, decay_iterations=50, shape="linear", min_lr=0.0)
RATE = DemoBackend().planned_rate
PLANNED = Expectation(True, lambda at: RATE(BRANCH, at), RATE(BRANCH, 100))


def tail(*losses: float | None, seconds: float = 1.0) -> list[Logged]:
    return [Logged(10 * n, loss, 1e-2, seconds) for n, loss in enumerate(losses, start=1)]


def rates(*pairs: tuple[int, float]) -> list[Logged]:
    return [Logged(iteration, 2.0, rate, 1.0) for iteration, rate in pairs]


@pytest.mark.parametrize(
    ("written", "logged", "last_good"),
    [
        ({"not_a_number": {"logged": 2}}, tail(2.0, None, None), 10),
        ({"not_a_number": {"logged": 2}}, tail(None, None), None),
        ({"not_a_number": {"logged": 2}}, tail(2.0, None), "quiet"),
        ({"not_a_number": {"logged": 2}}, tail(None, 2.0, None), "quiet"),
        ({"loss_above": {"value": 5, "logged": 2}}, tail(2.0, 6.0, 6.0), 10),
        ({"loss_above": {"value": 5, "logged": 2}}, tail(6.0, 5.0), "quiet"),
        ({"loss_above": {"value": 5, "logged": 1, "after": 20}}, tail(6.0), "quiet"),
        ({"loss_above": {"value": 5, "logged": 1, "after": 20}}, tail(6.0, 6.0), 10),
        ({"spike": {"times": 2, "over": 3, "logged": 1}}, tail(2.0, 1.0, 3.0, 4.1), 30),
        ({"spike": {"times": 2, "over": 3, "logged": 1}}, tail(2.0, 1.0, 3.0, 4.0), "quiet"),
        ({"spike": {"times": 2, "over": 3, "logged": 1}}, tail(2.0, 3.0, 9.0), "quiet"),
        ({"spike": {"times": 2, "over": 3, "logged": 2}}, tail(2.0, 2.0, 2.0, 5.0, 5.0), 30),
        ({"spike": {"times": 2, "over": 3, "logged": 1}}, tail(0.0, 0.0, 0.0, 5.0), "quiet"),
        ({"spike": {"times": 2, "over": 3, "logged": 1}}, tail(-1.0, -1.0, -1.0, -1.0), "quiet"),
        ({"spike": {"times": 2, "over": 3, "logged": 2}}, tail(2.0, 2.0, 2.0, 5.0, 2.0), "quiet"),
    ],
)
def test_a_rule_speaks_up_when_it_should_and_knows_the_last_good_iteration(
    written: dict[str, Any], logged: list[Logged], last_good: int | str | None
) -> None:
    found = alarm(MetricRule(**written), logged, NOTHING)
    assert ("quiet" if found is None else found.last_good) == last_good


def test_a_trainer_that_never_logs_a_loss_has_no_nan() -> None:
    rule = MetricRule(not_a_number={"logged": 2})  # type: ignore[arg-type]
    silent = NOTHING._replace(logs_loss=False)
    assert alarm(rule, tail(None, None, None), silent) is None


@pytest.mark.parametrize(("seconds", "loud"), [(2.1, True), (1.9, False)])
def test_half_the_speed_is_twice_the_time(seconds: float, loud: bool) -> None:
    rule = MetricRule(throughput_below={"share": 0.5, "over": 5, "logged": 2})  # type: ignore[arg-type]
    logged = [*tail(*[2.0] * 5), *tail(*[2.0] * 2, seconds=seconds)]
    assert (alarm(rule, logged, NOTHING) is not None) is loud


@pytest.mark.parametrize(
    ("logged", "loud"),
    [
        (rates((110, 0.8e-2), (120, 0.6e-2)), False),
        (rates((110, 0.82e-2), (120, 0.62e-2)), False),  # the step before's rate
        (rates((110, 1e-2), (120, 1e-2)), True),  # no decay at all
        (rates((110, 0.8e-2), (120, 0.2e-2)), False),  # one of two
        (rates((110, 0.0), (120, 0.0)), True),
    ],
)
def test_a_cooldowns_rate_is_compared_with_the_plan(logged: list[Logged], loud: bool) -> None:
    rule = MetricRule(off_schedule={"tolerance": 0.05, "logged": 2})  # type: ignore[arg-type]
    found = alarm(rule, logged, PLANNED)
    assert (found is not None) is loud
    if found is not None:
        assert "at iteration 120, planned 6.000e-03" in found.message
    assert alarm(rule, logged, NOTHING) is None


@pytest.mark.parametrize("shape", ["minus_sqrt", "linear", "cosine"])
def test_the_plan_is_what_the_demos_trainer_does(shape: str) -> None:
    branch = Branch(iteration=100, decay_iterations=50, shape=shape, min_lr=1e-3)
    schedule = Schedule(
        lr=1e-2,
        min_lr=1e-3,
        lr_decay_iters=150,
        lr_decay_style="WSD",
        lr_wsd_decay_iters=50,
        lr_wsd_decay_style=shape,
    )
    for iteration in (100, 101, 125, 149, 150):
        assert RATE(branch, iteration) == pytest.approx(schedule.rate(iteration))


def test_the_tail_is_as_long_as_the_longest_rule_needs() -> None:
    assert window(MetricRule(not_a_number={"logged": 3})) == 4  # type: ignore[arg-type]
    assert window(MetricRule(spike={"over": 50, "logged": 3})) == 53  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("written", "logs", "said"),
    [
        ({"off_schedule": {}}, {"loss"}, "has no learning rate"),
        ({"off_schedule": {}}, {"loss", "learning_rate"}, None),
        ({"throughput_below": {}}, {"loss"}, "has no seconds per iteration"),
        ({"throughput_below": {}}, {"tflops", "mfu"}, "per iteration; `of: tflops` would"),
        ({"throughput_below": {"of": "mfu"}}, {"loss", "mfu"}, None),
        ({"loss_above": {"value": 3, "of": "validation_loss"}}, {"loss"}, "no validation loss"),
        ({"spike": {"of": "grad_norm"}}, {"loss"}, "has no gradient norm"),
        ({"not_a_number": {}}, {"grad_norm"}, "has no loss"),
        ({"continuity": {}}, {"loss"}, None),
    ],
)
def test_a_rule_on_a_number_that_the_trainer_does_not_log_is_said_to_be_silent(
    written: dict[str, Any], logs: set[str], said: str | None
) -> None:
    sentences = unfed({"mine": MetricRule(**written), "off": None}, frozenset(logs))
    assert len(sentences) == (said is not None)
    for sentence in sentences:
        assert sentence.startswith("rule mine never fires: what this trainer logs ")
        assert sentence.endswith(said or "")
