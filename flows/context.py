"""Whether the flow runs in a terminal of its own, as under `autoexp run`, or under a worker."""

from contextvars import ContextVar

_foreground: ContextVar[bool] = ContextVar("foreground", default=False)


def enter_foreground() -> None:
    """From now on, in this context, signals to this process are the user's."""
    _foreground.set(True)


def in_foreground() -> bool:
    """Whether signals to this process mean: stop watching."""
    return _foreground.get()
