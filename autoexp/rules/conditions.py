"""Conditions: what has to hold before an action is done. Each is one key, as `max_attempts: 4`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Self, Union, get_args

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationInfo, model_validator

from autoexp.extensions import entry_points
from autoexp.extensions.bases import OwnCondition
from autoexp.model import COMPOSING, FrozenModel, nearest
from autoexp.rules.durations import Duration
from autoexp.templates import Templated

Scalar = str | int | float


class ValueTest(FrozenModel):
    """A value of the event, or of its job, and the test that it has to pass."""

    name: str = Field(description="a name as in templates, without braces")
    equals: Scalar | None = Field(None, description="equals this")
    one_of: tuple[Scalar, ...] | None = Field(None, description="is one of these")
    matches: str | None = Field(None, description="contains a match of this regular expression")
    above: float | None = Field(None, description="is a number above this")
    below: float | None = Field(None, description="is a number below this")

    @model_validator(mode="after")
    def _says_what(self, info: ValidationInfo) -> Self:
        tests = (self.equals, self.one_of, self.matches, self.above, self.below)
        if all(test is None for test in tests):
            raise ValueError("give `equals`, `one_of`, `matches`, `above` or `below`")
        if self.matches is not None:
            from autoexp.logs.linear import refuse_slow
            from autoexp.logs.patterns import compiled_by_re

            (refuse_slow if info.context == COMPOSING else compiled_by_re)(self.matches)
        return self


class GlobTest(FrozenModel):
    """Files by pattern."""

    pattern: str = Field(description="as in a shell: `*`, `?`, `[...]`, `**`")
    at_least: int = Field(1, gt=0, description="least number of matching paths")


class ContentTest(FrozenModel):
    """A text in a file."""

    path: str = Field(description="the file")
    text: str = Field(description="the text, which has to occur in its first MiB")


class JobTest(FrozenModel):
    """The state or verdict of another job of the session."""

    name: str = Field(description="the job")
    state: tuple[str, ...] = Field((), description="its state is one of these, in SLURM's spelling")
    verdict: tuple[str, ...] = Field((), description="its final verdict, `finished` or `failed`")

    @model_validator(mode="after")
    def _says_what(self) -> Self:
        if not self.state and not self.verdict:
            raise ValueError("give `state` or `verdict`")
        return self


class CommandTest(FrozenModel):
    """A command that has to end with exit code 0; its arguments are passed on as they are."""

    run: tuple[str, ...] = Field(min_length=1, description="the command, as a list of arguments")
    timeout: Duration = Field(60.0, description="time-out, after which it counts as failed")
    every: Duration = Field(30.0, description="time between two tries")


class Value(Templated):
    """A value of the event or of its job."""

    value: ValueTest = Field(description="compares a value, such as one that the pattern captured")

    def templates(self) -> Iterator[str]:
        yield f"{{{self.value.name}}}"


class FileExists(Templated):
    """A file or directory that has to be there."""

    file_exists: str = Field(description="this path exists")

    def templates(self) -> Iterator[str]:
        yield self.file_exists


class Glob(Templated):
    """Files that have to be there, by pattern."""

    glob: GlobTest = Field(description="enough paths match a pattern")

    def templates(self) -> Iterator[str]:
        yield self.glob.pattern


class FileContains(Templated):
    """A text that a file has to contain."""

    file_contains: ContentTest = Field(description="a file contains a text")

    def templates(self) -> Iterator[str]:
        yield from (self.file_contains.path, self.file_contains.text)


class Elapsed(Templated):
    """A wait after the event."""

    elapsed: Duration = Field(description="this much time has passed since the event")


class QuietFor(Templated):
    """A pause after the rule's last action."""

    quiet_for: Duration = Field(
        description="this much time has passed since the rule last acted on this job"
    )


class MaxAttempts(Templated):
    """A limit on attempts."""

    max_attempts: int = Field(gt=0, description="the job has made fewer attempts than this")


class MaxWithoutProgress(Templated):
    """A limit on attempts in a row without a new checkpoint."""

    max_attempts_without_progress: int = Field(
        gt=0, description="fewer attempts in a row than this have saved no new checkpoint"
    )


class DiedAtStart(Templated):
    """A mistake in the program, which another attempt would repeat."""

    died_at_start: bool = Field(
        description="the job died of a Python exception before its first iteration; `false`: "
        "it did not"
    )


class Job(Templated):
    """Another job."""

    job: JobTest = Field(description="state or verdict of a job of the session")

    def templates(self) -> Iterator[str]:
        yield self.job.name


class CommandSucceeds(Templated):
    """A command that has to succeed."""

    command: CommandTest = Field(description="a command ends with exit code 0")

    def templates(self) -> Iterator[str]:
        yield from self.command.run


class AllOf(Templated):
    """Several conditions, all of them."""

    all_of: "tuple[Condition, ...]" = Field(description="all of these hold")

    def templates(self) -> Iterator[str]:
        for condition in self.all_of:
            yield from condition.templates()


class AnyOf(Templated):
    """Several conditions, at least one of them."""

    any_of: "tuple[Condition, ...]" = Field(min_length=1, description="at least one of these holds")

    def templates(self) -> Iterator[str]:
        for condition in self.any_of:
            yield from condition.templates()


class NoneOf(Templated):
    """Several conditions, none of them."""

    none_of: "tuple[Condition, ...]" = Field(
        min_length=1, description="none of these holds; of attempts it is decided at once"
    )

    def templates(self) -> Iterator[str]:
        for condition in self.none_of:
            yield from condition.templates()


def _key(value: Any) -> str | None:
    """The one key that names the condition."""
    if isinstance(value, dict):
        return next(iter(value), None)
    return _key_of(type(value))


def _key_of(model: type[Any]) -> str | None:
    return next(iter(model.model_fields), None)


def _one_known_key(value: Any) -> Any:
    if isinstance(value, dict):
        if len(value) != 1:
            raise ValueError("a condition is one key and its value, such as `max_attempts: 4`")
        key = str(next(iter(value)))
        keys = [known for model in CONDITIONS for known in model.model_fields]
        if key not in keys:
            raise ValueError(f"no condition is called `{key}`{nearest(key, keys)}")
    elif not isinstance(value, FrozenModel):
        raise ValueError("a condition is one key and its value, such as `max_attempts: 4`")
    return value


_Shipped = (
    Value
    | FileExists
    | Glob
    | FileContains
    | Elapsed
    | QuietFor
    | MaxAttempts
    | MaxWithoutProgress
    | DiedAtStart
    | Job
    | CommandSucceeds
    | AllOf
    | AnyOf
    | NoneOf
)
_SHIPPED: tuple[type[Templated], ...] = get_args(_Shipped)
_KEYS = {str(_key_of(model)) for model in _SHIPPED}
CONDITIONS: tuple[type[Templated], ...] = (
    *_SHIPPED,
    *entry_points.installed(entry_points.CONDITIONS, OwnCondition, entry_points.only_field, _KEYS),
)
"""Every condition there is: those of autoexp, and of installed packages."""
if TYPE_CHECKING:
    Condition = _Shipped | OwnCondition
else:
    _TAGGED = [Annotated[model, Tag(_key_of(model))] for model in CONDITIONS]
    Condition = Annotated[
        Annotated[Union[(*_TAGGED,)], Discriminator(_key)],
        BeforeValidator(_one_known_key),
    ]
for _model in (AllOf, AnyOf, NoneOf):
    _model.model_rebuild()


def commands_in(condition: Condition) -> Iterator[CommandTest]:
    """The commands that a condition runs."""
    match condition:
        case CommandSucceeds(command=command):
            yield command
        case AllOf(all_of=inner) | AnyOf(any_of=inner) | NoneOf(none_of=inner):
            for each in inner:
                yield from commands_in(each)
        case _:
            pass
