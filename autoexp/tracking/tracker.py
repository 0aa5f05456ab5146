"""What a tracker is given of a job, and what it has to do with it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from autoexp import redaction, sinks
from autoexp.tracking.curve import Point, Rewind, Step

Kept = dict[str, str | int]
"""What a tracker wants to find again at the next batch of the same job."""

_LONGEST = 300
"""Of why a tracker is away, in characters."""


class TrackerAway(Exception):
    """A tracker did not take a batch; the text says why, and it is sent again."""


def _cause(error: BaseException) -> BaseException | None:
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def away(error: BaseException) -> TrackerAway:
    """What a client's error says, its last cause first: the text itself begins with addresses."""
    last, seen = error, {id(error)}
    while (cause := _cause(last)) is not None and id(cause) not in seen:
        seen.add(id(cause))
        last = cause
    text = f"{error}" if last is error else f"{last} ({error})"
    said = sinks.line(redaction.without_secrets(text))
    return TrackerAway(said if len(said) <= _LONGEST else f"{said[: _LONGEST - 1]}…")


class Owner(NamedTuple):
    """The session that jobs belong to."""

    session: str
    nonce: str
    """Tells it from another session of the same id."""
    project: str


class TrackedJob(NamedTuple):
    """A job, as a tracker shows it."""

    owner: Owner
    name: str
    kind: str
    parent: str | None
    settings: Mapping[str, str]
    """Target, branch point and settings, as text."""
    state: str | None
    """`finished`, `failed` or `cancelled`; None while it goes on."""
    scores: Mapping[str, float]
    """Those that were not sent yet."""

    @property
    def id(self) -> str:
        """The same at every batch, and no other job's."""
        return f"{self.owner.session}-{self.owner.nonce}-{self.name}"


class Batch(NamedTuple):
    """Steps that are sent together; after a kill the very same batch comes again."""

    steps: Sequence[Step]
    at_ms: int
    """Milliseconds since 1970, when it was made."""
    generation: int
    """How often the trainer had gone back before the first step."""
    rewinds: Sequence[tuple[int, int]]
    """All until the end of the batch: how far it had come, and the first iteration after it."""
    last: int
    """The last iteration that was logged until its end; 0 if there is none."""
    kept: Kept

    def marked(self) -> list[tuple[Point, int]]:
        """The points, each with its generation."""
        found: list[tuple[Point, int]] = []
        generation = self.generation
        for step in self.steps:
            if isinstance(step, Rewind):
                generation += 1
            else:
                found.append((step, generation))
        return found

    @property
    def rewound(self) -> str:
        """`1600>1010,2200>2010`: what went back, for people and for tools."""
        return ",".join(f"{come}>{to}" for come, to in self.rewinds)


class Tracker(Protocol):
    """Sends batches of jobs."""

    name: str
    rest_s: float
    """Seconds that a job has to wait after a batch, while it goes on."""

    def send(self, job: TrackedJob, batch: Batch) -> Kept:
        """Send a batch, which may be empty, and how the job stands; raises TrackerAway."""

    def close(self) -> None:
        """Let go of what is held between batches."""
