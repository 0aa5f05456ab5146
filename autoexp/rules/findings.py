"""What reading a job's log finds, as events."""

from typing import Literal

from pydantic import Field

from autoexp.model import Closed


class LogLost(Closed):
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
        # Of one file it may be said twice, of other bytes.
        place = f"/skipped{self.skipped}" if self.skipped else ""
        return f"log-lost/{self.job}/a{self.attempt}/{self.generation}{place}"


class LogMatched(Closed):
    """A rule's pattern was found in a job's log: the first time in the attempt, or every time."""

    kind: Literal["log_matched"] = "log_matched"
    job: str
    attempt: int
    rule: str
    severity: str = "error"
    iteration: int | None = None
    """The last iteration that had been logged before."""
    generation: int
    offset: int
    """Where the line begins: the file of the log, and the byte in it."""
    line: str
    values: dict[str, str | int | float] = Field(default_factory=dict)
    """What the pattern's named groups captured."""
    every: bool = False

    @property
    def key(self) -> str:
        place = f"/{self.generation}-{self.offset}" if self.every else ""
        return f"log/{self.job}/a{self.attempt}/{self.rule}{place}"


class MetricAlarm(Closed):
    """What a job logged broke a metric rule, for the first time in the attempt."""

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


class LoggingStopped(Closed):
    """A running job has written neither to its log nor a checkpoint for long."""

    kind: Literal["logging_stopped"] = "logging_stopped"
    job: str
    attempt: int
    rule: str
    generation: int
    offset: int
    """How far the log had come."""
    quiet_s: float

    @property
    def key(self) -> str:
        place = f"{self.generation}-{self.offset}"
        return f"inactive/{self.job}/a{self.attempt}/{self.rule}/{place}"
