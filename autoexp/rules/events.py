"""Events of a session, as values; the key of an event has no clock in it."""

from typing import Annotated, Literal
from zlib import crc32

from pydantic import Field

from autoexp.model import FrozenModel
from autoexp.states import Verdict


class LogLost(FrozenModel):
    """Bytes of a job's log were lost before they were read."""

    kind: Literal["log_lost"] = "log_lost"
    job: str
    attempt: int
    generation: int
    message: str
    skipped: int = 0
    """Bytes that were not read because the job had ended and its log was far behind."""

    @property
    def key(self) -> str:
        # One file may lose bytes twice, at other places.
        place = f"/skipped{self.skipped}" if self.skipped else ""
        return f"log-lost/{self.job}/a{self.attempt}/{self.generation}{place}"


class ProgressMissing(FrozenModel):
    """A log has grown, and no line of it names an iteration."""

    kind: Literal["progress_missing"] = "progress_missing"
    job: str
    attempt: int
    lines: int
    last_line: str
    log: str

    @property
    def key(self) -> str:
        return f"no-progress/{self.job}/a{self.attempt}"


class LogMatched(FrozenModel):
    """A rule's pattern was found in a job's log: the first time in the attempt, or every time."""

    kind: Literal["log_matched"] = "log_matched"
    job: str
    attempt: int
    rule: str
    severity: str = "error"
    iteration: int | None = None
    """The last iteration logged before this line."""
    generation: int
    offset: int
    """Start of the line: the generation of the log file, and the byte in it."""
    line: str
    values: dict[str, str | int | float] = Field(default_factory=dict)
    """What the pattern's named groups captured."""
    every: bool = False

    @property
    def key(self) -> str:
        place = f"/{self.generation}-{self.offset}" if self.every else ""
        return f"log/{self.job}/a{self.attempt}/{self.rule}{place}"


class MetricAlarm(FrozenModel):
    """A logged metric broke a rule, for the first time in the attempt."""

    kind: Literal["metric_alarm"] = "metric_alarm"
    job: str
    attempt: int
    rule: str
    iteration: int
    value: float | None
    """None: not a number, or missing."""
    expected: float | None = None
    last_good: int | None = None
    """The last logged iteration before the trouble began; None: nothing good was logged."""
    message: str

    @property
    def key(self) -> str:
        return f"metric/{self.job}/a{self.attempt}/{self.rule}"


class LoggingStopped(FrozenModel):
    """A running job has written neither to its log nor a checkpoint for long."""

    kind: Literal["logging_stopped"] = "logging_stopped"
    job: str
    attempt: int
    rule: str
    generation: int
    offset: int
    """Bytes of the log that had been read."""
    quiet_s: float
    furthest: int | None = None
    """The furthest iteration ever, where that is what stands still."""

    @property
    def key(self) -> str:
        place = f"{self.generation}-{self.offset}"
        if self.furthest is not None:
            place = f"at{self.furthest}"
        return f"inactive/{self.job}/a{self.attempt}/{self.rule}/{place}"


class CheckpointComplete(FrozenModel):
    """A checkpoint lies whole on the filesystem."""

    kind: Literal["checkpoint_complete"] = "checkpoint_complete"
    job: str
    iteration: int
    path: str
    generation: int = 0
    """Number of roll-backs of the job to before it: it is another checkpoint each time."""
    last: bool = False
    """True if it is the one at the job's target."""

    @property
    def key(self) -> str:
        again = f"/r{self.generation}" if self.generation else ""
        return f"checkpoint/{self.job}/{self.iteration}{again}"


class StateChanged(FrozenModel):
    """An attempt went from one scheduler state to another, perhaps while no monitor ran."""

    kind: Literal["state_changed"] = "state_changed"
    job: str
    attempt: int
    position: int
    """Place in the attempt's history, so that RUNNING after SUSPENDED is a new event."""
    old: str
    new: str
    reason: str | None = None
    exit_code: int | None = None

    @property
    def key(self) -> str:
        return f"state/{self.job}/a{self.attempt}/{self.position}/{self.new}"


class StartedElsewhere(FrozenModel):
    """An attempt did not resume from the checkpoint that it had to resume from."""

    kind: Literal["started_elsewhere"] = "started_elsewhere"
    job: str
    attempt: int
    reason: str

    @property
    def key(self) -> str:
        return f"start/{self.job}/a{self.attempt}"


class AttemptJudged(FrozenModel):
    """An attempt ended, with its verdict."""

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


class JobGivenUp(FrozenModel):
    """A job ended without an attempt to judge."""

    kind: Literal["job_given_up"] = "job_given_up"
    job: str
    reason: str
    retries: int = 0

    @property
    def key(self) -> str:
        again = f"/r{self.retries}" if self.retries else ""
        return f"given-up/{self.job}{again}"


class JobReady(FrozenModel):
    """The dependencies of a planned job are satisfied."""

    kind: Literal["job_ready"] = "job_ready"
    job: str
    retries: int = 0

    @property
    def key(self) -> str:
        again = f"/r{self.retries}" if self.retries else ""
        return f"ready/{self.job}{again}"


class AttemptRefused(FrozenModel):
    """The scheduler refused an attempt for a lasting reason."""

    kind: Literal["attempt_refused"] = "attempt_refused"
    job: str
    attempt: int
    reason: str

    @property
    def key(self) -> str:
        return f"not-taken/{self.job}/a{self.attempt}"


class ImageChanged(FrozenModel):
    """The file of an image is another one than the last attempt in it was given."""

    kind: Literal["image_changed"] = "image_changed"
    job: str
    attempt: int
    image: str

    @property
    def key(self) -> str:
        return f"image/{self.job}/a{self.attempt}"


class JobAdded(FrozenModel):
    """Another process added a job to the session."""

    kind: Literal["job_added"] = "job_added"
    job: str
    by: str

    @property
    def key(self) -> str:
        return f"added/{self.job}"


class RetryAsked(FrozenModel):
    """A user requested a retry of a failed job."""

    kind: Literal["retry_asked"] = "retry_asked"
    job: str
    by: str
    retries: int
    """Number of retries so far."""

    @property
    def key(self) -> str:
        return f"retried/{self.job}/r{self.retries}"


class RequestRefused(FrozenModel):
    """A request in the inbox could not be processed."""

    kind: Literal["request_refused"] = "request_refused"
    job: str
    request: str
    """Name of the request's file."""
    reason: str

    @property
    def key(self) -> str:
        return f"refused/{self.request}"


class CancelAnswered(FrozenModel):
    """The scheduler's answer to the cancellation of an attempt."""

    kind: Literal["cancel_answered"] = "cancel_answered"
    job: str
    attempt: int
    answer: str

    @property
    def key(self) -> str:
        return f"cancel/{self.job}/a{self.attempt}"


class RestartAsked(FrozenModel):
    """A rule requested a restart: another attempt in place of this one."""

    kind: Literal["restart_asked"] = "restart_asked"
    job: str
    attempt: int
    roll_back_to: int | None = None
    reason: str

    @property
    def key(self) -> str:
        back = "" if self.roll_back_to is None else f"/to{self.roll_back_to}"
        return f"restart/{self.job}/a{self.attempt}{back}"


class SaveAsked(FrozenModel):
    """A user asked for a checkpoint now."""

    kind: Literal["save_asked"] = "save_asked"
    job: str
    attempt: int
    request: str
    """Tells it from other requests."""
    saved: int
    """The newest checkpoint at that time; 0 without one."""
    by: str

    @property
    def key(self) -> str:
        return f"save/{self.job}/{self.request}"


class EvidenceCollected(FrozenModel):
    """What the processes of an attempt were doing, before a rule ended it."""

    kind: Literal["evidence_collected"] = "evidence_collected"
    job: str
    attempt: int
    path: str
    """The directory with all of it."""
    sentence: str | None = None
    """Where the ranks stood; None where that cannot be told."""
    problem: str | None = None
    """What kept it from being whole."""

    @property
    def key(self) -> str:
        return f"evidence/{self.job}/a{self.attempt}"


class NodesFoundSick(FrozenModel):
    """An attempt gave itself back before its trainer: the check found nodes of it sick."""

    kind: Literal["nodes_found_sick"] = "nodes_found_sick"
    job: str
    attempt: int
    key_of_attempt: str
    nodes: dict[str, str]
    """Each with the reason."""

    @property
    def key(self) -> str:
        return f"sick-nodes/{self.job}/a{self.attempt}"


class TrunksFinished(FrozenModel):
    """Every training of the session has finished."""

    kind: Literal["trunks_finished"] = "trunks_finished"
    job: str = ""
    trunks: int

    @property
    def key(self) -> str:
        return f"trunks-finished/{self.trunks}"


class BudgetPassed(FrozenModel):
    """The session's jobs have used more GPU hours than a rule allows."""

    kind: Literal["budget_passed"] = "budget_passed"
    job: str = ""
    rule: str
    gpu_hours: float

    @property
    def key(self) -> str:
        return f"budget/{self.rule}"


class CheckpointDeleted(FrozenModel):
    """A checkpoint was deleted by the session's `retention`."""

    kind: Literal["checkpoint_deleted"] = "checkpoint_deleted"
    job: str
    iteration: int
    path: str
    generation: int = 0
    files: int
    bytes: int
    """Of the files that had no other name: those are free."""

    @property
    def key(self) -> str:
        again = f"/r{self.generation}" if self.generation else ""
        return f"deleted/{self.job}/{self.iteration}{again}"


class DiskBudgetPassed(FrozenModel):
    """The session's checkpoints take more disk space than `retention.budget`."""

    kind: Literal["disk_budget_passed"] = "disk_budget_passed"
    job: str = ""
    bytes: int
    budget: int
    message: str

    @property
    def key(self) -> str:
        return "disk-budget"


class Published(FrozenModel):
    """A rule published an event, which other rules may react to."""

    kind: Literal["published"] = "published"
    job: str
    name: str
    payload: dict[str, str] = Field(default_factory=dict)
    action: str
    """Key of the action that published it."""

    @property
    def key(self) -> str:
        # Keys of actions contain keys of events: nested, they would grow without end.
        return f"published/{self.name}/{crc32(self.action.encode()):08x}"


Event = Annotated[
    CheckpointComplete
    | StateChanged
    | StartedElsewhere
    | AttemptJudged
    | JobGivenUp
    | JobReady
    | AttemptRefused
    | ImageChanged
    | JobAdded
    | RetryAsked
    | RequestRefused
    | CancelAnswered
    | LogLost
    | ProgressMissing
    | LogMatched
    | MetricAlarm
    | LoggingStopped
    | RestartAsked
    | SaveAsked
    | EvidenceCollected
    | NodesFoundSick
    | TrunksFinished
    | BudgetPassed
    | CheckpointDeleted
    | DiskBudgetPassed
    | Published,
    Field(discriminator="kind"),
]
