"""The kinds of rules: log lines, states, checkpoints, metrics, inactivity, the session."""

from collections.abc import Collection, Iterator
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from autoexp.logs import patterns
from autoexp.logs.linear import refuse_slow
from autoexp.model import COMPOSING, FrozenModel
from autoexp.rules import event_values
from autoexp.rules.actions import ENDS_AN_ATTEMPT, ConditionalAction, Launch, Restart
from autoexp.rules.durations import Duration
from autoexp.rules.events import (
    AttemptJudged,
    BudgetPassed,
    CheckpointComplete,
    Event,
    JobGivenUp,
    JobReady,
    LoggingStopped,
    LogMatched,
    MetricAlarm,
    NodesFoundSick,
    Published,
    StateChanged,
    TrunksFinished,
)
from autoexp.rules.metric_tests import (
    Continuity,
    LossAbove,
    MetricTest,
    NotANumber,
    OffSchedule,
    Spike,
    ThroughputBelow,
)
from autoexp.templates import refuse_unknown


class RuleBase(FrozenModel):
    """Fields that all rules share."""

    NAMES: ClassVar[Collection[str]] = ()
    """Values that an event of this kind gives to templates, besides those of its job."""

    jobs: tuple[str, ...] = Field(
        (), description="kinds (`train`, `cooldown`, …) or names of jobs; all by default"
    )
    actions: tuple[ConditionalAction, ...] = Field(
        (), description="actions, each done once per event"
    )

    def names(self) -> set[str]:
        """The names that templates of this rule may use."""
        return {*event_values.OF_SESSION, *event_values.OF_JOB, *self.NAMES}

    def is_about(self, job: str, kind: str) -> bool:
        """True if the rule applies to a job of this name and kind."""
        return not self.jobs or job in self.jobs or kind in self.jobs

    @model_validator(mode="after")
    def _templates_have_values(self) -> Self:
        for entry in self.actions:
            refuse_unknown(entry.templates(), self.names())
            self._refuse_action(entry)
        return self

    def _refuse_action(self, entry: ConditionalAction) -> None:
        if isinstance(entry.action, Launch) and entry.action.cooldown is not None:
            raise ValueError("a cooldown can only be launched from a rule in `checkpoint_events`")


class LogRule(RuleBase):
    """A line in a job's log. The first one of an attempt is an event, the others are counted."""

    NAMES = event_values.OF_LOG
    pattern: str | None = Field(
        None, description="a regular expression; named groups `(?P<rank>[0-9]+)` become values"
    )
    substring: str | None = Field(
        None, min_length=2, description="a plain text to look for, instead of a pattern"
    )
    severity: Literal["info", "warning", "error"] = Field(
        "error", description="severity, shown to readers"
    )
    every: bool = Field(False, description="each line is an event of its own")
    times: int = Field(
        1,
        gt=0,
        description="the event is the line that comes so many times in an attempt without an "
        "iteration further than ever before: restarts inside of a job",
    )

    @model_validator(mode="after")
    def _one_pattern(self, info: ValidationInfo) -> Self:
        if self.every and self.times > 1:
            raise ValueError("`every` makes each line an event, `times` one of many: give one")
        if (self.pattern is None) == (self.substring is None):
            raise ValueError("give exactly one of `pattern` and `substring`")
        if self.pattern is not None:
            patterns.compiled_by_re(self.pattern)
        if info.context == COMPOSING:
            # An older session keeps its patterns; they see less of a line, if need be.
            if self.pattern is not None:
                refuse_slow(self.pattern)
            patterns.refuse_escapes(self.pattern or self.substring or "")
        return self

    def names(self) -> set[str]:
        captured = () if self.pattern is None else patterns.groups_of(self.pattern)
        return {*super().names(), *captured}

    def wanted(self, name: str) -> patterns.Wanted:
        """The pattern, for the matcher."""
        text = self.pattern if self.substring is None else self.substring
        return patterns.Wanted(name, text or "", self.substring is None)

    def fires(self, event: Event, name: str) -> bool:
        return isinstance(event, LogMatched) and event.rule == name


class StateRule(RuleBase):
    """A job changes its state, also while no monitor ran, or gets a verdict."""

    NAMES = event_values.OF_STATE
    to: tuple[str, ...] = Field((), description="SLURM states that the job changes to")
    was: tuple[str, ...] = Field(
        (), description="SLURM states that the job comes from; any by default"
    )
    verdict: Literal["finished", "continue", "failed"] | None = Field(
        None, description="instead of a state: the verdict on an ended attempt"
    )
    exit_codes: tuple[int, ...] = Field(
        (), description="only ends with one of these exit codes; alone: of the state FAILED"
    )

    @model_validator(mode="before")
    @classmethod
    def _exit_codes_are_of_failures(cls, values: Any) -> Any:
        alone = isinstance(values, dict) and values.get("exit_codes") and not values.get("to")
        if alone and values.get("verdict") is None:
            return {**values, "to": ("FAILED",)}
        return values

    @model_validator(mode="after")
    def _one_thing(self) -> Self:
        if bool(self.to) == (self.verdict is not None):
            raise ValueError("give exactly one of `to` and `verdict`")
        if self.exit_codes and self.verdict is not None:
            raise ValueError("a verdict has no exit code: `exit_codes` goes with `to`")
        restarts = any(isinstance(entry.action, Restart) for entry in self.actions)
        if self.verdict is not None and restarts:
            raise ValueError("a verdict is final: restart on a state, such as `to: [FAILED]`")
        return self

    def fires(self, event: Event, name: str) -> bool:
        del name
        match event:
            case StateChanged():
                code = not self.exit_codes or event.exit_code in self.exit_codes
                return event.new in self.to and (not self.was or event.old in self.was) and code
            case AttemptJudged():
                return event.verdict == self.verdict
            case JobGivenUp():
                return self.verdict == "failed"
        return False


class CheckpointRule(RuleBase):
    """A checkpoint is complete. Without `at`, `every`, `shares` or `last`: each one."""

    NAMES = event_values.OF_CHECKPOINT
    jobs: tuple[str, ...] = Field(
        ("train",), description="kinds or names of jobs; a cooldown's checkpoints only if named"
    )
    at: tuple[int, ...] = Field((), description="these iterations")
    every: int | None = Field(None, gt=0, description="every so many iterations")
    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (), description="for cooldowns: shares of the training's target"
    )
    budgets: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (),
        description="for cooldowns: total lengths, trunk plus decay, as shares of the training's "
        "target; the branch point follows from `decay.fraction`",
    )
    last: bool = Field(False, description="the one at the target iteration")
    range: tuple[int, int] | None = Field(
        None, description="only iterations in this range (first and last)"
    )

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> Self:
        ways = (self.at, self.every, self.shares, self.budgets, self.last)
        if sum(bool(way) for way in ways) > 1:
            raise ValueError("give one of `at`, `every`, `shares`, `budgets` and `last`")
        others = len(self.actions) - len(list(self.cooldowns()))
        if (self.budgets or self.shares) and (others or not self.actions):
            raise ValueError("`shares` and `budgets` are for rules that launch cooldowns alone")
        if any(True for _ in self.cooldowns()) and self.jobs != ("train",):
            raise ValueError("cooldowns branch from the training: leave `jobs` out")
        return self

    def _refuse_action(self, entry: ConditionalAction) -> None:
        pass

    def cooldowns(self) -> Iterator[ConditionalAction]:
        """The actions that launch cooldowns: these are planned, and start by rules of their own."""
        for entry in self.actions:
            if isinstance(entry.action, Launch) and entry.action.cooldown is not None:
                yield entry

    def fires(self, event: Event, name: str) -> bool:
        del name
        if not isinstance(event, CheckpointComplete):
            return False
        iteration = event.iteration
        if self.range is not None and not self.range[0] <= iteration <= self.range[1]:
            return False
        if self.at:
            return iteration in self.at
        if self.every is not None:
            return iteration % self.every == 0
        if self.last:
            return event.last
        return True


class OnCheckpoint(FrozenModel):
    """Matches one checkpoint of one job; a plan implies it for each of its cooldowns."""

    job: str
    iteration: int

    def fires(self, event: Event, name: str) -> bool:
        del name
        return (
            isinstance(event, CheckpointComplete)
            and event.job == self.job
            and event.iteration == self.iteration
        )


class OnReady(FrozenModel):
    """Matches a job that may start; a plan implies it for each job that waits for others."""

    job: str

    def fires(self, event: Event, name: str) -> bool:
        del name
        return isinstance(event, JobReady) and event.job == self.job


class OnSickNodes(FrozenModel):
    """Matches an attempt that was given back; a session's `nodes` implies it."""

    def fires(self, event: Event, name: str) -> bool:
        del name
        return isinstance(event, NodesFoundSick)


class MetricRule(RuleBase):
    """A metric in the log breaks one of these tests. Once per attempt."""

    NAMES = event_values.OF_METRIC
    not_a_number: NotANumber | None = Field(None, description="NaN or missing loss")
    loss_above: LossAbove | None = Field(None, description="a loss above a bound")
    spike: Spike | None = Field(None, description="a loss above its moving median")
    throughput_below: ThroughputBelow | None = Field(None, description="slower than the median")
    off_schedule: OffSchedule | None = Field(None, description="a learning rate other than planned")
    continuity: Continuity | None = Field(
        None, description="first losses far above those before the checkpoint"
    )

    @cached_property
    def tests(self) -> list[MetricTest]:
        """The tests that the rule names."""
        named: list[Any] = [getattr(self, name) for name in type(self).model_fields]
        found: list[Any] = [value for value in named if isinstance(value, FrozenModel)]
        return found

    @model_validator(mode="after")
    def _one_test(self) -> Self:
        if len(self.tests) != 1:
            raise ValueError(
                "give exactly one of `not_a_number`, `loss_above`, `spike`, `throughput_below`, "
                "`off_schedule` and `continuity`"
            )
        return self

    def fires(self, event: Event, name: str) -> bool:
        return isinstance(event, MetricAlarm) and event.rule == name


class InactivityRule(RuleBase):
    """A running job writes neither log lines nor checkpoints."""

    NAMES = event_values.OF_INACTIVITY
    after: Duration = Field(
        description="how long; only time in which the job runs and is watched counts"
    )
    counts: Literal["output", "progress"] = Field(
        "output",
        description="what ends the time: any output, or an iteration further than ever before: "
        "restarts inside of a job keep its log busy",
    )

    def fires(self, event: Event, name: str) -> bool:
        return isinstance(event, LoggingStopped) and event.rule == name


class SessionRule(RuleBase):
    """A condition on the session as a whole."""

    NAMES = event_values.OF_SESSION_EVENT
    trunks_finished: bool = Field(False, description="every training has finished")
    gpu_hours_above: float | None = Field(
        None, gt=0, description="all jobs together have used more GPU hours than this"
    )
    published: str | None = Field(
        None, description="a `publish` action has published an event of this name"
    )

    @model_validator(mode="after")
    def _one_thing(self) -> Self:
        ways = (self.trunks_finished, self.gpu_hours_above, self.published)
        if sum(bool(way) for way in ways) != 1:
            raise ValueError(
                "give exactly one of `trunks_finished`, `gpu_hours_above` and `published`"
            )
        about_a_job = self.jobs or any(
            isinstance(entry.action, ENDS_AN_ATTEMPT) for entry in self.actions
        )
        if about_a_job and self.published is None:
            raise ValueError(
                "a session rule has no job: leave out `jobs`, `restart`, `finish`, `fail`"
            )
        return self

    def fires(self, event: Event, name: str) -> bool:
        match event:
            case TrunksFinished():
                return self.trunks_finished
            case BudgetPassed():
                return event.rule == name
            case Published():
                return event.name == self.published
        return False


AnyRule = (
    LogRule
    | StateRule
    | CheckpointRule
    | MetricRule
    | InactivityRule
    | SessionRule
    | OnCheckpoint
    | OnReady
    | OnSickNodes
)
