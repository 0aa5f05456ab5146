"""Budgets in tokens, samples and iterations, with a growing batch size, and what a plan costs."""

import importlib.util
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from autoexp.backends.batches import Batches, Ramp
from autoexp.config.cooldowns import Budgets
from autoexp.config.experiment import Experiment
from autoexp.config.quantities import Quantity
from autoexp.errors import BadInput
from autoexp.planning.plan import Plan, make_plan
from tests.core.backends.conformance.megatron import ARGS, STAND_IN


def stand_in() -> Any:
    """The stand-in as a module: it counts samples as Megatron does."""
    spec = importlib.util.spec_from_file_location("stand_in", STAND_IN / "pretrain_gpt.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def planned(*cooldowns: dict[str, Any], **args: Any) -> Plan:
    """A trunk of 10,000 iterations of 8 samples of 64 tokens, saving every 100."""
    args = {**ARGS, "train_iters": 10_000, **args}
    content = {
        "project": {"name": "p"},
        "backend": {"kind": "megatron", "source": str(STAND_IN), "args": args},
        "slurm": {"kind": "local"},
        "cooldowns": cooldowns,
    }
    return make_plan(Experiment.model_validate(content), Path("/out"))


def branches(plan: Plan) -> list[tuple[int, int]]:
    found = [job.branch for job in plan.cooldowns if job.branch is not None]
    return [(branch.iteration, branch.decay_iterations) for branch in found]


# Amounts


@pytest.mark.parametrize(
    ("written", "unit", "amount", "means"),
    [
        ("6B", None, 6_000_000_000, "tokens"),
        ("2.5M", None, 2_500_000, "tokens"),
        ("3M samples", None, 3_000_000, "samples"),
        ("500K tokens", None, 500_000, "tokens"),
        (1200, None, 1200, "iterations"),
        ("1200 iterations", None, 1200, "iterations"),
        (6e9, "tokens", 6_000_000_000, "tokens"),
        ("6K", "iterations", 6000, "iterations"),
        ("1T", None, 10**12, "tokens"),
    ],
)
def test_an_amount_is_read_with_its_suffix_and_unit(
    written: Any, unit: Any, amount: int, means: str
) -> None:
    (total,) = Budgets(totals=(written,), unit=unit).totals
    assert (total.amount, total.unit) == (amount, means)


@pytest.mark.parametrize(
    "written", ["6G", "many", "-3", "0", "1.5", "6B token", "", True, "0.3 K s"]
)
def test_what_is_no_amount_is_refused(written: Any) -> None:
    with pytest.raises(ValidationError):
        Budgets(totals=(written,))


def test_an_amount_reads_back_from_a_record_as_it_was() -> None:
    budgets = Budgets.model_validate({"totals": ["6B", "3M samples", 1200], "unit": None})
    assert Budgets.model_validate_json(budgets.model_dump_json()) == budgets
    assert [str(total) for total in budgets.totals] == ["6B tokens", "3M samples", "1200"]


# Batches


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 8), st.integers(1, 8), st.integers(0, 12), st.integers(1, 5000),
    st.integers(0, 400),
)  # fmt: skip
@example(1, 1, 7, 295, 111)
def test_a_ramp_is_counted_as_megatron_counts_it(
    start: int, increment: int, steps: int, samples: int, iterations: int
) -> None:
    size = start + steps * increment
    ramp = Ramp(start, increment, samples) if steps else None
    batches = Batches(size, None, ramp)
    growing = [start, increment, samples] if steps else None
    args = Namespace(global_batch_size=size, rampup_batch_size=growing)
    consumed = 0
    for _ in range(iterations):
        consumed += STAND_IN_MODULE.batch_size(args, consumed)
    assert batches.samples(iterations) == consumed
    assert batches.iterations(consumed) == iterations
    args.train_iters, args.train_samples = None, consumed
    if consumed:
        assert STAND_IN_MODULE.count_iterations(args) == iterations


@given(st.integers(1, 8), st.integers(1, 12), st.integers(1, 5000), st.integers(0, 100_000))
def test_iterations_never_take_more_than_the_budget_and_one_more_would(
    start: int, steps: int, ramped: int, budget: int
) -> None:
    batches = Batches(start + steps, None, Ramp(start, 1, ramped))
    most = batches.iterations(budget)
    assert batches.samples(most) <= budget < batches.samples(most + 1)


STAND_IN_MODULE = stand_in()


# Plans


def test_a_budget_in_tokens_gives_branch_point_and_decay() -> None:
    # 512 tokens an iteration: 1M tokens are 1,953 iterations, of which the last fifth decays.
    budgets = {"totals": ["1M", "2M"], "fraction": 0.2, "shape": "linear"}
    plan = planned({"budgets": budgets})
    assert branches(plan) == [(1500, 453), (3100, 806)]
    assert {job.branch.shape for job in plan.cooldowns if job.branch} == {"linear"}
    assert plan.notes[0].startswith("cooldowns.0: 1M tokens: branches at 1500, the checkpoint")


def test_samples_and_iterations_say_the_same() -> None:
    in_samples = planned({"budgets": {"totals": ["16K samples"]}})
    in_iterations = planned({"budgets": {"totals": [2000]}})
    assert branches(in_samples) == branches(in_iterations) == [(1600, 400)]


def test_a_ramp_moves_the_branch_points() -> None:
    plain = branches(planned({"budgets": {"totals": ["1M"]}}))
    ramped = branches(planned({"budgets": {"totals": ["1M"]}}, rampup_batch_size=(2, 2, 8000)))
    assert ramped[0][0] > plain[0][0]
    batches = Batches(8, 64, Ramp(2, 2, 8000))
    start, length = ramped[0]
    tokens = batches.tokens(start + length)
    assert tokens is not None
    assert 1_000_000 - 512 < tokens <= 1_000_000


def test_the_plan_tells_what_separate_runs_would_have_cost() -> None:
    cost = planned({"budgets": {"totals": [5000, 10_000], "fraction": 0.2}}).cost
    assert cost is not None
    assert (cost.models, cost.iterations) == (2, 10_000 + 1000 + 2000)
    assert cost.separate_iterations == 15_000
    assert (cost.tokens, cost.separate_tokens) == (13_000 * 512, 15_000 * 512)


@pytest.mark.parametrize(
    ("budgets", "expected"),
    [
        ({"totals": ["10M"]}, "10M tokens: beyond the trunk's target of 10000 iterations"),
        ({"totals": ["50K"]}, "50K tokens: before the first checkpoint, which is at 100"),
        ({"totals": [90]}, "90: before the first checkpoint, which is at 100"),
    ],
)
def test_a_budget_that_cannot_be_is_refused_by_its_own_words(
    budgets: dict[str, Any], expected: str
) -> None:
    with pytest.raises(BadInput) as refused:
        planned({"budgets": budgets})
    assert str(refused.value) == f"cooldowns.0: {expected}"


def test_a_backend_that_cannot_count_tokens_says_so() -> None:
    with pytest.raises(ValueError, match="does not say how many tokens a sample has"):
        Quantity(amount=10, unit="tokens").iterations(Batches(8))
    with pytest.raises(ValueError, match="does not say how many samples an iteration takes"):
        Quantity(amount=10, unit="samples").iterations(None)
