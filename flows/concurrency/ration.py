"""A node that gives each process so much CPU time: the monitor hands over before it is used up.

By `ulimit -t`, or by what a site is known for. The kernel counts for each process anew, so a
successor that is a process of its own has all of it again.
"""

import atexit
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from autoexp.flows.concurrency import successor
from autoexp.flows.concurrency.foreground import Foreground
from autoexp.storage import lease

USED_UP = "the end of its CPU time"
# For the last words to Prefect and the end of the interpreter.
_LEAST_LEFT_S = 4.0
_LEFT_SHARE = 0.1
# Less than that between its start and its end, and a monitor would do little but hand over.
_LEAST_WORK_S = 2.0


def limit_s(site_s: float | None) -> float | None:
    """Seconds of CPU that this process may take in all; None: as many as it wants."""
    soft, _ = resource.getrlimit(resource.RLIMIT_CPU)
    own = None if soft == resource.RLIM_INFINITY else float(soft)
    return min((known for known in (own, site_s) if known is not None), default=None)


def watch(limit_s: float, foreground: Foreground) -> bool:
    """Have the flow stop shortly before the limit; False where too little is left for that.

    To be called on the main thread. It costs nothing: the kernel counts.
    """
    left = limit_s - max(_LEAST_LEFT_S, _LEFT_SHARE * limit_s) - time.process_time()
    if left < _LEAST_WORK_S:
        return False

    def hand_over(_number: int, _frame: object) -> None:
        if foreground.stopped_by is None:  # else somebody wants it to end
            foreground.stop(USED_UP)

    signal.signal(signal.SIGPROF, hand_over)
    signal.setitimer(signal.ITIMER_PROF, left)
    return True


class Succession:
    """The successor, if one is wanted by the end of this process."""

    def __init__(self) -> None:
        # Before anybody else registers: so after all the others have done their last.
        self._environment = dict(os.environ)
        self._command: Sequence[str] | None = None
        self._session: Path | None = None
        atexit.register(self.begin)

    def want(self, command: Sequence[str], session: Path) -> None:
        """Have a command go on with a session, in this process's place and first environment."""
        signal.setitimer(signal.ITIMER_PROF, 0)
        self._command, self._session = command, session

    def begin(self) -> None:
        """Begin, if it is wanted; does not return then."""
        if self._command is not None and self._session is not None:
            # Held still where a flow was left alone, and this process keeps its number.
            lease.forsake(self._session)
            _become(self._command, self._environment)


def _become(command: Sequence[str], environment: Mapping[str, str]) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    waiter = [sys.executable, "-I", "-S", successor.__file__, *command]
    os.execve(waiter[0], waiter, environment)
