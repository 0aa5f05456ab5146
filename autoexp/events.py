"""What can happen in a session, as values; the key of an event has no clock in it."""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from autoexp.backends.base import Closed
from autoexp.jobs import Verdict


class CheckpointComplete(Closed):
    """A checkpoint lies whole on the filesystem."""

    kind: Literal["checkpoint_complete"] = "checkpoint_complete"
    job: str
    iteration: int
    path: str

    @property
    def key(self) -> str:
        return f"checkpoint/{self.job}/{self.iteration}"


class StateChanged(Closed):
    """An attempt went from one scheduler state to another, perhaps while nobody watched."""

    kind: Literal["state_changed"] = "state_changed"
    job: str
    attempt: int
    position: int
    """Place in the attempt's history, so that RUNNING after SUSPENDED is a new event."""
    old: str
    new: str
    reason: str | None = None

    @property
    def key(self) -> str:
        return f"state/{self.job}/a{self.attempt}/{self.position}/{self.new}"


class AttemptJudged(Closed):
    """An attempt ended, and what that means for its job."""

    kind: Literal["attempt_judged"] = "attempt_judged"
    job: str
    attempt: int
    verdict: Verdict
    state: str
    iteration: int | None
    reason: str

    @property
    def key(self) -> str:
        return f"verdict/{self.job}/a{self.attempt}"


class JobGivenUp(Closed):
    """A job ended without an attempt that could be judged."""

    kind: Literal["job_given_up"] = "job_given_up"
    job: str
    reason: str

    @property
    def key(self) -> str:
        return f"given-up/{self.job}"


class AttemptRefused(Closed):
    """The scheduler would not take an attempt, for a lasting reason."""

    kind: Literal["attempt_refused"] = "attempt_refused"
    job: str
    attempt: int
    reason: str

    @property
    def key(self) -> str:
        return f"not-taken/{self.job}/a{self.attempt}"


class JobAdded(Closed):
    """Another process brought a job into the session."""

    kind: Literal["job_added"] = "job_added"
    job: str
    by: str

    @property
    def key(self) -> str:
        return f"added/{self.job}"


class RequestRefused(Closed):
    """A request in the inbox could not be taken on."""

    kind: Literal["request_refused"] = "request_refused"
    job: str
    request: str
    """Name of the request's file."""
    reason: str

    @property
    def key(self) -> str:
        return f"refused/{self.request}"


class CancelAnswered(Closed):
    """The scheduler was told to cancel an attempt, and said something."""

    kind: Literal["cancel_answered"] = "cancel_answered"
    job: str
    attempt: int
    answer: str

    @property
    def key(self) -> str:
        return f"cancel/{self.job}/a{self.attempt}"


class LogLost(Closed):
    """Bytes of a job's log were lost before they were read."""

    kind: Literal["log_lost"] = "log_lost"
    job: str
    attempt: int
    generation: int
    message: str

    @property
    def key(self) -> str:
        return f"log-lost/{self.job}/a{self.attempt}/{self.generation}"


Event = Annotated[
    CheckpointComplete
    | StateChanged
    | AttemptJudged
    | JobGivenUp
    | AttemptRefused
    | JobAdded
    | RequestRefused
    | CancelAnswered
    | LogLost,
    Field(discriminator="kind"),
]
adapter: TypeAdapter[Event] = TypeAdapter(Event)


def describe(event: Event) -> str:
    """One line for people."""
    match event:
        case CheckpointComplete():
            return f"checkpoint {event.iteration} of {event.job} is complete"
        case StateChanged():
            because = f" ({event.reason})" if event.reason else ""
            return f"{event.job} attempt {event.attempt}: {event.old} -> {event.new}{because}"
        case AttemptJudged():
            return f"{event.job} attempt {event.attempt}: {event.verdict} ({event.reason})"
        case JobGivenUp():
            return f"{event.job}: failed ({event.reason})"
        case AttemptRefused():
            return f"{event.job} attempt {event.attempt}: not submitted ({event.reason})"
        case JobAdded():
            return f"{event.job}: joined the session ({event.by})"
        case RequestRefused():
            return f"request refused: {event.reason}"
        case CancelAnswered():
            return f"{event.job} attempt {event.attempt}: cancelled, answer: {event.answer}"
        case LogLost():
            return f"{event.job} attempt {event.attempt}: {event.message}"
