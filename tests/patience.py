"""Waiting for conditions, never for a number of seconds."""

import time
from collections.abc import Callable
from typing import Any

PATIENCE_S = 300.0
"""For what comes, sooner or later: machines differ, and others use them too."""


def until(condition: Callable[[], Any], what: str, *, seconds: float = PATIENCE_S) -> Any:
    """Ask until the answer is yes, and return it; fail after `seconds`, naming `what`."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain for: {what}"
        time.sleep(0.1)
    return answer
