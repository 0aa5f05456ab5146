"""The terminal that a flow runs for, as under `autoexp run`; a worker's flow has none.

The flow runs in a thread, and the main thread handles signals and the exit code: there Prefect
would install its own handler for SIGTERM, again with every subflow. And it retries its last
messages to an unreachable server for longer than anybody at a prompt waits.
"""

import asyncio
import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from types import FrameType
from typing import Any

from autoexp.flows.concurrency.children import Updates

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE_S = 15.0
# The end of the thread ends the wait for it at once; each look beside costs a little for days.
_SELDOM_S, _OFTEN_S = 10.0, 1.0
# A thousand subflows take minutes to end; nobody at a prompt waits that long either.
_LONGEST_S = 60.0
_LAST_S = 1.0


class Foreground:
    """Shared by a terminal's thread, which gets the signals, and the flow's thread."""

    def __init__(self) -> None:
        self.is_begun = False
        self.stopped_by: str | None = None
        self.visits: int | None = None
        """Where an embedded Prefect server says who looks at it."""
        self.taken_at = 0.0
        """When Prefect accepted something for the last time, by the monotonic clock."""
        self._stopped_at: float | None = None
        self._updates: Updates | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def stop(self, by: str) -> None:
        """Have the flow stop watching, at once or as soon as it begins; jobs keep running."""
        self.stopped_by, self._stopped_at = by, time.monotonic()
        if self._loop is not None and self._updates is not None:
            with suppress(RuntimeError):  # it has just ended
                self._loop.call_soon_threadsafe(self._updates.interrupt, by)

    def listen(self, updates: Updates) -> None:
        """Connect the flow: from now on it can be stopped."""
        self._updates, self._loop = updates, asyncio.get_running_loop()
        if self.stopped_by is not None:
            updates.interrupt(self.stopped_by)

    @property
    def over_at(self) -> float | None:
        """Monotonic time at which only the last messages to Prefect were left; None: not yet."""
        ended_at = self._updates.ended_at if self._updates is not None else None
        return ended_at if ended_at is not None else self._stopped_at


_foreground: ContextVar[Foreground | None] = ContextVar("foreground", default=None)


def enter_foreground(foreground: Foreground) -> None:
    """Mark this context as one where somebody at a terminal waits for the flow."""
    _foreground.set(foreground)


def foreground() -> Foreground | None:
    """The terminal that waits for this flow; None under a worker."""
    return _foreground.get()


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


def exit_after(seconds: float, code: int, last: Callable[[], None]) -> None:
    """Exit with `code` after `seconds`, once `last` is done, even if Prefect's threads still send.

    At the interpreter's exit they flush their queues, however long that takes.
    """

    def end() -> None:
        last()
        os._exit(code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def leave(code: int, last: Callable[[], None] = lambda: None) -> None:
    """Exit with `code` beside a flow that was abandoned, with a second for what is registered.

    The interpreter's own exit would take its threads' ground away, and one that is in a library of
    C++ then ends the process by a signal instead. `last` is called at the very end.
    """
    registered = threading.Thread(target=atexit._run_exitfuncs, daemon=True)
    registered.start()
    registered.join(_LAST_S)
    with suppress(OSError, ValueError):  # a terminal that is lost
        sys.stdout.flush()
        sys.stderr.flush()
    last()
    os._exit(code)
