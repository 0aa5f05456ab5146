"""Pauses between repeated tries are bounded, whatever the number of failures."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoexp.backoff import delay_s


@given(
    failures=st.integers(),
    first_s=st.floats(0, 1e6),
    longest_s=st.floats(0, 1e6),
    jitter=st.floats(0, 2),
)
def test_a_pause_is_between_nothing_and_its_bound_for_any_number_of_failures(
    failures: int, first_s: float, longest_s: float, jitter: float
) -> None:
    assert 0 <= delay_s(failures, first_s, longest_s, jitter) <= longest_s * (1 + jitter)


@pytest.mark.parametrize("failures", [1025, 10**6, 10**400, -1, -(10**400)])
def test_counts_that_no_float_holds_are_bounded_too(failures: int) -> None:
    assert 0 < delay_s(failures, 1.0, 60.0) <= 72.0


def test_a_pause_doubles_with_each_failure_until_its_bound() -> None:
    pauses = [delay_s(failures, 1.0, 10.0, jitter=0) for failures in range(7)]
    assert pauses == [1.0, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_those_that_failed_together_do_not_try_again_together() -> None:
    random.seed(0)
    pauses = {delay_s(3, 1.0, 60.0) for _ in range(20)}
    assert len(pauses) == 20
    assert all(3.2 <= pause <= 4.8 for pause in pauses)
