"""Jobs and their attempts, as specified and as recorded on disk."""

from datetime import UTC, datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from autoexp import states
from autoexp.backends.base import Branch, Closed
from autoexp.logtail import LogCursor


class Kind(StrEnum):
    """What a job is for."""

    TRAIN = "train"
    COOLDOWN = "cooldown"
    EVALUATE = "evaluate"
    COMMAND = "command"


class Verdict(StrEnum):
    """What an ended attempt means for its job."""

    FINISHED = "finished"
    CONTINUE = "continue"
    FAILED = "failed"


class JobSpec(Closed):
    """What is submitted: fixed when the job enters the session."""

    name: str
    kind: Kind
    parent: str | None = None
    branch: Branch | None = None
    command: tuple[str, ...]
    environment: dict[str, str] = Field(default_factory=dict)
    output_dir: str
    save_dir: str
    target_iteration: int | None = None

    @property
    def title(self) -> str:
        """What people read: `train demo`, `cooldown demo @1000`."""
        if self.branch is None:
            return f"{self.kind} {self.name}"
        return f"{self.kind} {self.parent} @{self.branch.iteration}"


class Attempt(BaseModel):
    """One submission of a job to a scheduler."""

    model_config = ConfigDict(extra="forbid")

    number: int
    key: str
    """Known before the submission; the scheduler's name for the job."""
    log: str
    job_id: str | None = None
    state: str = states.SUBMITTING
    transitions: int = 0
    """State changes seen so far; their story is in the journal."""
    reason: str | None = None
    intended_at: datetime
    submitted_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    exit_code: int | None = None
    signal: int | None = None
    nodes: str | None = None
    first_iteration: int | None = None
    """Iteration the job had reached when the attempt was made: progress is measured from here."""
    verdict: Verdict | None = None

    @property
    def is_open(self) -> bool:
        """Whether the scheduler may still say something new about it."""
        return not states.is_terminal(self.state)


class JobRecord(BaseModel):
    """`jobs/<name>.json`: everything a session knows about one job."""

    model_config = ConfigDict(extra="forbid")

    spec: JobSpec
    attempts: list[Attempt] = Field(default_factory=list)
    launched: bool = False
    """Whether it may be submitted: the trunk from the start, a cooldown once it is seeded."""
    cursor: LogCursor = LogCursor()
    iteration: int | None = None
    loss: float | None = None
    learning_rate: float | None = None
    seconds_per_iteration: float | None = None
    checkpoints: list[int] = Field(default_factory=list)
    attempts_without_progress: int = 0
    cancel_requested: str | None = None
    """Who asked for the cancellation, and how; None as long as nobody has."""
    verdict: Verdict | None = None
    """Final: finished or failed; None while the job goes on."""
    reason: str | None = None
    warning: str | None = None

    @property
    def attempt(self) -> Attempt | None:
        """The newest attempt."""
        return self.attempts[-1] if self.attempts else None

    @property
    def is_over(self) -> bool:
        return self.verdict is not None

    @property
    def state(self) -> str:
        """The newest attempt's state, or WAITING before the first."""
        return self.attempt.state if self.attempt else states.WAITING

    @property
    def wants_attempt(self) -> bool:
        """Whether it should be submitted now, as far as the job itself is concerned."""
        if self.is_over or not self.launched or self.cancel_requested:
            return False
        return self.attempt is None or self.attempt.verdict is Verdict.CONTINUE

    @property
    def needs_submission(self) -> bool:
        """Whether its newest attempt is intended and has not got a job id."""
        attempt = self.attempt
        return attempt is not None and attempt.is_open and attempt.job_id is None


def now() -> datetime:
    """The time, aware and in UTC: what stands on disk."""
    return datetime.now(UTC)
