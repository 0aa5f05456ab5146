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


def in_turns(phases: Phases, do: Callable[[Effect], Any]) -> Iterator[None]:
    """Run phases in this thread, effects by `do`; yields between two, for others to take turns."""
    answer: Any = None
    error: Exception | None = None
    while True:
        try:
            phase = phases.send(answer) if error is None else phases.throw(error)
        except StopIteration:
            return
        answer, error = None, None
        try:
            match phase:
                case OnSession(call) | Request(_, call):
                    answer = call()
                case Pause():
                    pass
                case _:
                    answer = do(phase)
        except Exception as raised:
            error = raised
        yield


def run(phases: Phases, scheduler: Scheduler) -> None:
    """Run phases one after the other to their end, where no loop waits beside them."""
    for _ in in_turns(phases, lambda effect: effect.run(scheduler)):
        pass
