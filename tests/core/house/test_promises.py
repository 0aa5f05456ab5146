"""Whatever a log, a scheduler or a path says, each place that it goes to keeps its promise."""

import itertools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.core.house.promises import HOSTILE, PROMISES, keep

# Whole texts, and such as are made of pieces of hostile ones.
TEXTS = (
    st.text()
    | st.lists(st.sampled_from(HOSTILE) | st.characters(), max_size=6).map("".join)
    | st.text(st.sampled_from("\x1b\x9b[]()0;mJ\x07\\\n\r\t -./|`*_<>#$@={}'\"\0²٣é\udc80:1"))
)


@pytest.mark.parametrize("name", PROMISES)
def test_a_hostile_text_is_made_safe(name: str, tmp_path: Path) -> None:
    for text in HOSTILE:
        keep(name, text, tmp_path)


def throw(
    at: Callable[[str], None],
    first: int,
    seconds: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Throw texts, forty or for a time, from a seed on; returns how many were thrown.

    The time ends between any two texts: a hundred of them may take longer than all of it.
    """
    until = None if seconds is None else clock() + seconds
    thrown = 0
    few = settings(
        max_examples=40 if until is None else 100,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )

    def one(text: str) -> None:
        nonlocal thrown
        if until is None or clock() < until:
            thrown += 1
            at(text)

    for number in itertools.count(first):
        seed(number)(few(given(TEXTS)(one)))()
        if until is None or clock() >= until:
            return thrown
    raise AssertionError("numbers have no end")


def test_any_text_is_made_safe(tmp_path: Path) -> None:
    first = int(os.environ.get("AUTOEXP_TEST_SEED", "0"))
    seconds = os.environ.get("FUZZ_S")

    def kept(text: str) -> None:
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            for name in PROMISES:
                keep(name, text, Path(folder))

    count = throw(kept, first, float(seconds) if seconds else None)
    if seconds:
        print(f"{count} texts, from seed {first} on: no finding")


def test_texts_are_thrown_for_their_time_and_no_longer() -> None:
    thrown: list[str] = []
    seconds = itertools.count(0.0)
    assert throw(thrown.append, 0, 130.0, lambda: next(seconds)) == len(thrown)
    assert 120 < len(thrown) <= 130
