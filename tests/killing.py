"""Processes that die at a durable step of the test's choice, in the place of a `kill -9`."""

import itertools
import os
import signal
import sys
import traceback
from collections.abc import Callable

from autoexp.storage import atomic

KilledAt = Callable[[int, Callable[[], object]], bool]


def die_at(n: int) -> None:
    """Have this process killed at its n-th durable step from now on; 0: never."""
    steps = itertools.count(1)

    def step() -> None:
        if next(steps) == n:
            os.kill(os.getpid(), signal.SIGKILL)

    atomic.step = step


def killed_at(n: int, act: Callable[[], object]) -> bool:
    """Run `act` in a process that is killed at its n-th durable step; False if it ended before."""
    child = os.fork()
    if child == 0:
        try:
            die_at(n)
            act()
            os._exit(0)
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), f"the process ended with {code}"
    return code != 0
