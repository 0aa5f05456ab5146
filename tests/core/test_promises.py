"""Whatever a log, a scheduler or a path says, each place that it goes to keeps its promise."""

import itertools
import os
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.core.promises import HOSTILE, PROMISES, keep

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


def test_any_text_is_made_safe(tmp_path: Path) -> None:
    first = int(os.environ.get("AUTOEXP_TEST_SEED", "0"))
    seconds = os.environ.get("FUZZ_S")
    until = time.monotonic() + float(seconds) if seconds else None
    few = settings(
        max_examples=100 if until else 40,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )

    def kept(text: str) -> None:
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            for name in PROMISES:
                keep(name, text, Path(folder))

    for number in itertools.count(first):
        seed(number)(few(given(TEXTS)(kept)))()
        if until is None or time.monotonic() > until:
            if until is not None:
                print(f"{number - first + 1} times 100 texts, from seed {first} on: no finding")
            break
