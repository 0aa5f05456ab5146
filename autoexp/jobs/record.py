"""The record of a job: its attempts, its progress, its verdict."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from autoexp import states
from autoexp.jobs.spec import JobSpec
from autoexp.logs.tail import LogCursor
from autoexp.model import FrozenModel
from autoexp.resources.pools import HeldSlots, Wanted
from autoexp.rules.metrics import Before, Logged
from autoexp.states import Verdict
from autoexp.storage import migrations


class Attempt(BaseModel):
    """One submission of a job to a scheduler."""

    model_config = ConfigDict(extra="forbid")

    number: int
    key: str
    """Known before the submission; names the attempt's directory."""
    name: str
    """The scheduler's name for the job: the key, except for adopted jobs."""
    log: str
    array_index: int | None = None
    """Its index, when it is a task of a SLURM array."""
    job_id: str | None = None
    state: str = states.SUBMITTING
    transitions: int = 0
    """Number of state changes seen so far; the journal has them."""
    reason: str | None = None
    intended_at: datetime
    submitted_at: datetime | None = None
    expected_at: datetime | None = None
    """When the scheduler expects to start it, within minutes; None: it does not say."""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    exit_code: int | None = None
    signal: int | None = None
    warned: bool = False
    """True if it was warned to save because its time limit was near."""
    nodes: str | None = None
    sick_nodes: dict[str, str] = Field(default_factory=dict)
    """Nodes for which it gave itself back before its trainer, each with the reason."""
    gpus: int = 0
    """GPUs that it holds while it runs."""
    is_local: bool = False
    """True if it runs beside the monitor, in a session whose other jobs may not."""
    earlier_gpu_hours: float = 0.0
    """GPU hours of runs before a requeue under the same job id."""
    time_limit_min: float | None = None
    """Requested minutes; None leaves it to the partition."""
    after: str | None = None
    """Job id of the attempt that has to end before this one starts (a chain)."""
    first_iteration: int | None = None
    """Iteration the job had reached when the attempt was made: progress is measured from here."""
    earliest_start: int | None = None
    """The earliest iteration to begin from, if less: queued behind another attempt, it may itself
    have saved what was found when that one was judged."""
    started_from: int | None = None
    """Iteration that it began from, as its trainer logs; UNDECIDED: the next line decides."""
    first_logged: tuple[int, ...] = ()
    """The first two iterations that it logged."""
    first_logged_at: datetime | None = None
    """When its first iteration was read."""
    last_logged_at: datetime | None = None
    fell_back: tuple[int, int] | None = None
    """An iteration that it logged after it had come further, and the checkpoint behind which it
    should have been."""
    may_have_fallen_back: tuple[int, int] | None = None
    """The same of one line alone, which may be garbled: the next one decides."""
    saved: int | None = None
    """The newest checkpoint that was found while it was the one that ran."""
    before: Before | None = None
    """What was logged before the checkpoint that it begins from, for the rule `continuity`."""
    wrong_start: str | None = None
    """Reason why it did not begin where it had to; it never counts as finished."""
    verdict: Verdict | None = None
    matches: dict[str, int] = Field(default_factory=dict)
    """Number of log lines that matched, by rule."""
    repeats: dict[str, tuple[int, int]] = Field(default_factory=dict)
    """Of rules with `times`: lines that matched since the job has come furthest, and how far."""

    @property
    def is_open(self) -> bool:
        """True if the scheduler may still report a change of it."""
        return not states.is_terminal(self.state)


class RestartRequest(FrozenModel):
    """A requested restart: written down before anything else is done about it."""

    attempt: int
    action: str
    """Key of the action that requested it."""
    reason: str
    roll_back_to: int | None = None
    """Checkpoints behind this iteration are set aside."""
    backend: dict[str, Any] = Field(default_factory=dict)
    """Changes to the job's backend."""


class Ending(FrozenModel):
    """A rule decided the verdict of a job, whatever its attempts do."""

    verdict: Verdict
    action: str
    reason: str


class JobRecord(BaseModel):
    """``jobs/<name>.json`: the record of one job."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = migrations.VERSION
    spec: JobSpec
    attempts: list[Attempt] = Field(default_factory=list)
    launched: bool = False
    """True if it may be submitted: the trunk from the start, a cooldown once it is seeded."""
    cursor: LogCursor = LogCursor()
    iteration: int | None = None
    loss: float | None = None
    learning_rate: float | None = None
    seconds_per_iteration: float | None = None
    mean_seconds_per_iteration: float | None = None
    """Exponentially weighted, so that a slow first step is forgotten."""
    grad_norm: float | None = None
    tokens_per_s: float | None = None
    tflops: float | None = None
    mfu: float | None = None
    """Per cent."""
    validations: dict[str, tuple[int, float]] = Field(default_factory=dict)
    """Iteration and loss of the last validation, by the name of its set."""
    validation_tail: list[tuple[int, float]] = Field(default_factory=list)
    """The last validations of all sets, for metric rules."""
    checkpoints: list[int] = Field(default_factory=list)
    there_before: list[int] | None = None
    """Iterations of checkpoints that lay in its folder before its first attempt: nobody deletes
    them. None: that is not known."""
    deleted: list[int] = Field(default_factory=list)
    """Iterations of checkpoints that were deleted by `retention`, or are being deleted."""
    sizes: dict[int, int] = Field(default_factory=dict)
    """Bytes of its checkpoints that were measured, by iteration."""
    logs_loss: bool = False
    """True if a loss was ever logged: only then is a missing one an alarm."""
    tainted: str | None = None
    """Reason the checkpoint that it branched from cannot be trusted."""
    roll_backs: list[int] = Field(default_factory=list)
    """Iterations that the job was rolled back to; what lay behind each was set aside."""
    tail: list[Logged] = Field(default_factory=list)
    """The last logged iterations of the attempt, as many as the session's metric rules look at."""
    attempts_without_progress: int = 0
    scores: dict[str, float] = Field(default_factory=dict)
    """Numbers that it wrote into its file of scores, by dotted name."""
    retries: int = 0
    """Number of retries that a user requested."""
    restart: RestartRequest | None = None
    """The requested restart; None once the next attempt may be submitted."""
    restarted: dict[int, str] = Field(default_factory=dict)
    """Attempts that were replaced, with the action that requested it."""
    ending: Ending | None = None
    slots: HeldSlots | None = None
    """Slots of a pool that it holds: from before its first attempt until none is left."""
    waits_for_slots: str | None = None
    """Reason why it is not submitted: its pool has too few slots."""
    cancel_requested: str | None = None
    """Who requested the cancellation, and how; None if nobody has."""
    verdict: Verdict | None = None
    """The final verdict, finished or failed; None while the job goes on."""
    reason: str | None = None
    warning: str | None = None

    @property
    def attempt(self) -> Attempt | None:
        """The current attempt: the deciding one, else the first without a verdict.

        Attempts after it are queued ahead, as a chain.
        """
        if len(self.attempts) < 2:
            return self.attempts[0] if self.attempts else None
        open_ones = (a for a in self.attempts if a.verdict is None)
        deciding = (a for a in self.attempts if a.verdict in (Verdict.FINISHED, Verdict.FAILED))
        return next(deciding if self.is_over else open_ones, self.attempts[-1])

    @property
    def open_attempts(self) -> list[Attempt]:
        """Attempts that the scheduler has, or is about to get."""
        return [attempt for attempt in self.attempts if attempt.is_open]

    @property
    def unsubmitted(self) -> Attempt | None:
        """The attempt that is intended and has no job id yet."""
        return next((a for a in self.open_attempts if a.job_id is None), None)

    @property
    def saved_iteration(self) -> int:
        """The iteration to resume from: the newest checkpoint, or the branch point."""
        start = self.spec.branch.iteration if self.spec.branch else 0
        return max([start, *self.checkpoints])

    @property
    def is_over(self) -> bool:
        return self.verdict is not None

    @property
    def was_cancelled(self) -> bool:
        """True if a requested cancellation came before the target."""
        return self.verdict is Verdict.FAILED and self.cancel_requested is not None

    @property
    def failed_by_itself(self) -> bool:
        """True if it has failed, and nobody cancelled it."""
        return self.verdict is Verdict.FAILED and not self.was_cancelled

    @property
    def failed_log(self) -> str | None:
        """The log of a job that failed by itself."""
        return self.attempt.log if self.failed_by_itself and self.attempt else None

    @property
    def state(self) -> str:
        """The state of the current attempt, or WAITING before the first."""
        return self.attempt.state if self.attempt else states.WAITING

    @property
    def is_ending(self) -> bool:
        """True if its attempts in the queue are to be cancelled."""
        ends = self.is_over or self.cancel_requested is not None or self.ending is not None
        return ends or self.restart is not None

    @property
    def may_be_replaced(self) -> bool:
        """True if a requested restart can go on: no attempt of the job is alive."""
        settled = all(a.verdict is not None for a in self.attempts) and not self.open_attempts
        return self.restart is not None and settled and not self.is_over

    @property
    def wanted_slots(self) -> Wanted | None:
        """Slots of a pool that it lacks; None if it needs none, or holds them."""
        pool, gpus = self.spec.machine.budget_pool, self.spec.machine.gpus
        return None if pool is None or gpus == 0 or self.slots else Wanted(pool, gpus)

    @property
    def has_slots_left_over(self) -> bool:
        """True if it holds slots, and goes on with no attempt."""
        if self.slots is None or self.open_attempts or self.wants_attempt():
            return False
        return self.is_over or all(attempt.verdict is not None for attempt in self.attempts)

    def generation(self, iteration: int) -> int:
        """Number of times the job was rolled back to before an iteration."""
        return sum(back < iteration for back in self.roll_backs)

    def wants_attempt(self, chain: int = 1) -> bool:
        """True if another attempt should be submitted now, as far as the job is concerned.

        `chain` is how many may be in the queue at once.
        """
        if self.is_ending or not self.launched:
            return False
        if any(a.verdict is None and not a.is_open for a in self.attempts):
            return False  # it has ended, and has not been judged yet
        if any(a.job_id is None and a.verdict is Verdict.CONTINUE for a in self.attempts):
            chain = 1  # one that was queued ahead was refused
        waiting = self.open_attempts
        return len(waiting) < chain and all(a.job_id is not None for a in waiting)
