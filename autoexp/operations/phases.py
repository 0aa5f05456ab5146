"""Phases of steps and actions, which run outside the loop: on the session's thread, or elsewhere.

A step or an action is a generator that yields phases and is sent the result of each. Whoever
drives it decides how a phase is run: the flow as Prefect tasks, tests and simulations in an order
of their own.
"""

from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple, Protocol

from autoexp.schedulers.base import Scheduler


class OnSession(NamedTuple):
    """Read or write the session's records, on the one thread that may."""

    call: Callable[[], Any]


class ShownOnSession(NamedTuple):
    """The same, but shown in the run graph: a rule requests something."""

    title: str
    call: Callable[[], str]


class Pause(NamedTuple):
    """Wait before the next try."""

    seconds: float


class Effect(Protocol):
    """An effect outside of the session's records, from values alone; it may block."""

    @property
    def title(self) -> str:
        """Title in the run graph."""

    def run(self, scheduler: Scheduler) -> Any:
        """Do it and return the result."""


class ShownEffect(Effect, Protocol):
    """An effect that jobs wait for: it is done at once, and shown in the run graph beside that."""

    @property
    def job(self) -> str | None:
        """The job in whose run it is shown; None: in the session's."""


Phase = OnSession | ShownOnSession | Pause | Effect
Phases = Generator[Phase, Any, None]


class TryAgain(Exception):
    """An effect could not be done for an outside reason: Prefect is not reachable."""


def do(phase: Phase, scheduler: Scheduler) -> Any:
    """Run one phase in this thread; pauses are skipped."""
    match phase:
        case OnSession(call) | ShownOnSession(_, call):
            return call()
        case Pause():
            return None
        case _:
            return phase.run(scheduler)


def advance(phases: Phases, answer: Any, error: Exception | None) -> Phase | None:
    """Return the next phase, given the last one's `answer` or `error`; None: all done.

    What a phase raises is thrown into whoever yielded it.
    """
    try:
        return phases.send(answer) if error is None else phases.throw(error)
    except StopIteration:
        return None


def in_turns(phases: Phases, do: Callable[[Phase], Any]) -> Iterator[None]:
    """Run each phase by `do`, and yield after each, so that others can take a turn."""
    answer: Any = None
    error: Exception | None = None
    while (phase := advance(phases, answer, error)) is not None:
        answer, error = None, None
        try:
            answer = do(phase)
        except Exception as raised:
            error = raised
        yield


def run(phases: Phases, scheduler: Scheduler) -> None:
    """Run phases one after the other to their end, without a loop."""
    for _ in in_turns(phases, lambda phase: do(phase, scheduler)):
        pass
