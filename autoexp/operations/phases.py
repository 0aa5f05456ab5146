"""The phases of what is done beside a session's loop: on the session's thread, or outside.

A step or an action is a generator that yields phases and gets back what came of each. Whoever
drives it decides how a phase is run: the flow as Prefect tasks, tests and simulations in an order
of their own.
"""

from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple, Protocol

from autoexp.schedulers.base import Scheduler


class OnSession(NamedTuple):
    """Read or write the session's records, on the one thread that may."""

    call: Callable[[], Any]


class Request(NamedTuple):
    """The same, for what people should see in the run graph: a rule asks for something."""

    title: str
    call: Callable[[], str]


class Pause(NamedTuple):
    """Wait before the next try."""

    seconds: float


class Effect(Protocol):
    """Something done outside of the session's records, from values alone; it may block."""

    @property
    def title(self) -> str:
        """What people read in the run graph."""

    def run(self, scheduler: Scheduler) -> Any:
        """Do it; returns what came of it."""


Phase = OnSession | Request | Pause | Effect
Phases = Generator[Phase, Any, None]


class TryAgain(Exception):
    """An effect could not be done for a reason that is not its own: Prefect is away."""


def do(phase: Phase, scheduler: Scheduler) -> Any:
    """Run one phase in this thread; pauses are for those who have something else to do."""
    match phase:
        case OnSession(call) | Request(_, call):
            return call()
        case Pause():
            return None
        case _:
            return phase.run(scheduler)


def advance(phases: Phases, answer: Any, error: Exception | None) -> Phase | None:
    """The next phase, now that the last one came to `answer` or raised `error`; None: all done.

    What a phase raises is thrown into whoever yielded it.
    """
    try:
        return phases.send(answer) if error is None else phases.throw(error)
    except StopIteration:
        return None


def in_turns(phases: Phases, do: Callable[[Phase], Any]) -> Iterator[None]:
    """Run each phase by `do`, and stop behind each, for others to take their turn."""
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
    """Run phases one after the other to their end, where no loop waits beside them."""
    for _ in in_turns(phases, lambda phase: do(phase, scheduler)):
        pass
