"""Runs the flow in a thread; the main thread handles signals and the exit code.

In the main thread Prefect would install its own handler for SIGTERM, again with every subflow. And
it retries its last messages to an unreachable server for longer than anybody at a prompt waits.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from types import FrameType
from typing import Any

from autoexp.flows.concurrency.foreground import Foreground
from autoexp.reports.terminal import say

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE_S = 15.0
# The end of the thread ends the wait for it at once; each look beside costs a little for days.
_SELDOM_S, _OFTEN_S = 10.0, 1.0
# A thousand subflows take minutes to end; nobody at a prompt waits that long either.
_LONGEST_S = 60.0


@contextmanager
def stopping_on_signals(foreground: Foreground) -> Iterator[None]:
    """Make Ctrl-C, `kill` and a lost terminal stop the monitor; jobs keep running.

    Raises KeyboardInterrupt while there is no flow yet that could be stopped.
    """
    terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def stop(number: int, _frame: FrameType | None) -> None:
        foreground.stop(signal.Signals(number).name)
        _forget_lost(terminals)
        if not foreground.is_begun:
            raise KeyboardInterrupt

    before: dict[signal.Signals, Any] = {}
    for signum in _SIGNALS:
        # What is ignored stays so: SIGHUP under `nohup`, SIGINT in the background of a script.
        if signal.getsignal(signum) is not signal.SIG_IGN:
            before[signum] = signal.signal(signum, stop)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _forget_lost(terminals: list[int]) -> None:
    """Redirect lost terminals to /dev/null, so that later output does not fail."""
    for descriptor in terminals:
        if not os.isatty(descriptor):
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def run_in_thread(foreground: Foreground, flow: Callable[[], None]) -> bool:
    """Run the flow to its end in a thread of its own, and raise what it raises.

    Returns False when the flow was abandoned: its session is over, and Prefect does not accept its
    last messages in time. The server's health check does not show that: it passes with a wiped
    database or a wrong login. By then everything of the session is on disk.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            flow()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=copy_context().run, args=(run,), daemon=True, name="flow")
    foreground.is_begun = True
    thread.start()
    while thread.is_alive():
        thread.join(_OFTEN_S if foreground.over_at is not None else _SELDOM_S)
        since = foreground.over_at
        if since is None or not thread.is_alive():
            continue
        now = time.monotonic()
        if now - max(since, foreground.taken_at) > _PATIENCE_S or now - since > _LONGEST_S:
            return False
    if raised:
        raise raised[0]
    return True


def exit_after(
    seconds: float, code: int, said: str, last: Callable[[], None] = lambda: None
) -> None:
    """Exit with `code` after `seconds`, with a message, even if Prefect's threads still send.

    At the interpreter's exit they flush their queues, however long that takes. `last` is called
    before.
    """

    def leave() -> None:
        if said:
            say(said, error=True)
        last()
        os._exit(code)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()
