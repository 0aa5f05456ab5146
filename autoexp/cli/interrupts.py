"""The session flow in a thread beside the terminal's, which gets the signals and the last word.

In the main thread Prefect would put its own handler for SIGTERM, again with every subflow. And what
it has to tell a server that is gone it tries to tell for very long: nobody at a prompt waits that
long.
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
# A thousand subflows take minutes to end; nobody at a prompt waits that long either.
_LONGEST_S = 60.0


@contextmanager
def stopping_on_signals(foreground: Foreground) -> Iterator[None]:
    """Let Ctrl-C, `kill` and a lost terminal end the watching, and nothing else.

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
    """What is still to be said must not fail for a terminal that is gone."""
    for descriptor in terminals:
        if not os.isatty(descriptor):
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def run_in_thread(foreground: Foreground, flow: Callable[[], None]) -> bool:
    """Run the flow to its end in a thread of its own, and raise what it raises.

    False: it was left alone, as its session is over and Prefect takes nothing of what it has to
    tell, or takes too long. A server's health says nothing about that: one whose database was wiped
    has it, and one that wants another login. What the flow had to do for the session is done by
    then, and on disk.
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
        thread.join(1.0)
        since = foreground.over_at
        if since is None or not thread.is_alive():
            continue
        now = time.monotonic()
        if now - max(since, foreground.taken_at) > _PATIENCE_S or now - since > _LONGEST_S:
            return False
    if raised:
        raise raised[0]
    return True


def exit_after(seconds: float, code: int, said: str) -> None:
    """Have this process end with `code`, and with a word, though Prefect's threads would keep it.

    At the interpreter's exit they send what they hold, for as long as that takes.
    """

    def leave() -> None:
        if said:
            say(said, error=True)
        os._exit(code)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()
