"""Actions: what a rule does. In YAML each is one key, as `restart: {roll_back: true}`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union, get_args

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    create_model,
    model_serializer,
    model_validator,
)

from autoexp.extensions import entry_points
from autoexp.extensions.bases import OwnAction
from autoexp.model import FrozenModel
from autoexp.rules.conditions import Condition
from autoexp.rules.durations import Duration, Tokens
from autoexp.scalars import AsWritten
from autoexp.templates import Templated, texts_in

Shape = Literal["minus_sqrt", "linear", "cosine", "exponential", "power", "points"]
Points = tuple[tuple[float, float], ...]
Jobs = Annotated[
    tuple[str, ...], Field(description="names or kinds of jobs; by default the event's own job")
]


class Decay(FrozenModel):
    """Shape and length of a cooldown's decay, from the trunk's peak rate to `min_lr`."""

    iterations: int | None = Field(None, gt=0, description="length in iterations")
    tokens: Tokens | None = Field(None, description="length in tokens: `2B`")
    fraction: float | None = Field(
        None, gt=0, lt=1, description="length as a share of the branch's total iterations"
    )
    shape: Shape = Field(
        "minus_sqrt",
        description="1 - sqrt(x), linear, half a cosine, 2 / 2^x - 1 (exponential), (1 - x)^power, "
        "or `points`",
    )
    min_lr: float | None = Field(
        None, ge=0, description="learning rate at the end; the backend's own if unset"
    )
    power: float | None = Field(None, gt=0, description="of the shape `power`; 2 if unset")
    points: Points | None = Field(
        None,
        min_length=2,
        description="of the shape `points`: pairs of a share of the length and a share of the way "
        "from `min_lr` up to the peak, joined by lines: `[[0, 1], [0.5, 0.2], [1, 0]]`",
    )
    hold: float = Field(
        0.0, ge=0, lt=1, description="share of the length, at its end, that stays at `min_lr`"
    )

    @model_validator(mode="after")
    def _fits_its_shape(self) -> Self:
        if self.power is not None and self.shape != "power":
            raise ValueError(f"`power` is for the shape `power`, and this is `{self.shape}`")
        if (self.points is None) == (self.shape == "points"):
            raise ValueError("`points` and the shape `points` go together")
        if self.points is not None:
            shares = [share for share, _ in self.points]
            if shares[0] != 0 or shares[-1] != 1 or sorted(set(shares)) != shares:
                raise ValueError("`points` go from 0 to 1, each behind the one before")
            if any(not 0 <= height <= 1 for _, height in self.points):
                raise ValueError("the second number of each of `points` is from 0 to 1")
        return self


class LaunchedCooldown(FrozenModel):
    """A cooldown from each checkpoint of the rule; planned before the training starts."""

    decay: Decay = Field(default_factory=Decay, description="how the learning rate decays")
    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9._-]+$",
        max_length=40,
        description="part of the job's name",
    )


class Start(Templated):
    """Start a job that was planned; a plan implies it for each of its cooldowns."""

    kind: Literal["start"] = "start"
    job: str


class Keep(Templated):
    """Pin a checkpoint as an input of a planned merge; a plan implies it for each of them."""

    kind: Literal["keep"] = "keep"
    job: str


class Measure(Templated):
    """Measure the size of a checkpoint; a session's `retention` implies it for each of them."""

    kind: Literal["measure"] = "measure"


class Delete(Templated):
    """Delete a checkpoint that nothing needs and no rule of the session's `retention` keeps."""

    kind: Literal["delete"] = "delete"


class Save(Templated):
    """Have a trainer save at once, perhaps branch from there; asked for by `autoexp save`."""

    kind: Literal["save"] = "save"
    restart: bool = False
    """True if it is to save and end as at its time limit, since it cannot save and go on."""
    cooldown: LaunchedCooldown | None = None
    """A cooldown from the checkpoint."""


class Avoid(Templated):
    """Have jobs avoid nodes that a check found sick; a session's `nodes` implies it."""

    kind: Literal["avoid"] = "avoid"


class Launch(Templated):
    """Submit another job in the same session: a cooldown, a command, or any configuration."""

    kind: Literal["launch"] = "launch"
    cooldown: LaunchedCooldown | None = Field(None, description="a cooldown from the checkpoint")
    command: tuple[str, ...] | None = Field(
        None, min_length=1, description="a job that runs this command (list of arguments)"
    )
    config: str | None = Field(None, description="a job, with its cooldowns, of this configuration")
    choose: dict[str, str] = Field(
        default_factory=dict, description="group files to use instead: `{slurm: small}`"
    )
    set: AsWritten = Field(
        default_factory=dict,
        description="values to change, by dotted key: `{slurm.nodes: 1}`; texts are templates",
    )
    name: str = Field("", description="the new job's name, a template; has to be new each time")
    scores: str | None = Field(
        None,
        description="JSON file of numbers that a command writes, in its output directory; or "
        "the directory of lm-eval's `--output_path`",
    )
    as_kind: Literal["train", "evaluate", "command"] = Field(
        "evaluate", description="the kind of the job: rules for `train` do not apply to others"
    )

    @model_validator(mode="after")
    def _one_thing(self) -> Self:
        ways = (self.cooldown, self.command, self.config)
        if sum(way is not None for way in ways) != 1:
            raise ValueError("give exactly one of `cooldown`, `command` and `config`")
        if self.cooldown is None and not self.name:
            raise ValueError("give the job a `name`, such as `{job.name}-eval{event.number}`")
        if self.cooldown is not None and (self.name or self.set or self.choose):
            raise ValueError("a cooldown takes its settings from `cooldown` alone")
        if self.command is not None and (
            self.choose or any(not key.startswith("slurm.") for key in self.set)
        ):
            raise ValueError("of a command only keys of `slurm` can be set")
        if self.scores is not None and self.command is None:
            raise ValueError("`scores` is for a `command`; a configuration has stages of its own")
        for group, choice in self.choose.items():
            if not (group + choice).replace("_", "").replace("-", "").isalnum():
                raise ValueError(f"`{group}: {choice}`: a group and the name of a file in it")
        return self

    def templates(self) -> Iterator[str]:
        yield self.name
        yield from self.command or ()
        yield from texts_in(self.set)


class Restart(Templated):
    """End the running attempt and submit the next one."""

    kind: Literal["restart"] = "restart"
    roll_back: bool = Field(
        False,
        description="resume from the last checkpoint before the trouble began; later ones are set "
        "aside (renamed)",
    )
    backend: AsWritten = Field(
        default_factory=dict,
        description="changes to the job's backend, from the next attempt on: `{args: {lr: 1e-4}}`",
    )
    exclude_nodes: Literal["blamed"] | None = Field(
        None, description="`blamed`: later submissions avoid the node that the event names"
    )
    evidence: bool = Field(
        False,
        description="before a running attempt is ended, write down within a minute what its "
        "processes do: stacks of all ranks, GPUs, NCCL's flight recorder, ends of logs",
    )


class RunCommand(Templated):
    """Run a command beside the monitor, arguments as they are; a kill may run it again."""

    kind: Literal["run_command"] = "run_command"
    run: tuple[str, ...] = Field(min_length=1, description="the command, as a list of arguments")
    timeout: Duration = Field(600.0, description="time-out, after which the command is killed")
    retries: int = Field(0, ge=0, description="number of retries when it fails")
    environment: dict[str, str] = Field(
        default_factory=dict, description="additional environment variables"
    )

    def templates(self) -> Iterator[str]:
        yield from self.run
        yield from self.environment.values()


class Cancel(Templated):
    """Cancel jobs, pending or running; their verdict is `failed`."""

    kind: Literal["cancel"] = "cancel"
    jobs: Jobs = ()
    reason: str = Field("", description="the reason, a template")

    def templates(self) -> Iterator[str]:
        yield from (*self.jobs, self.reason)


class Finish(Templated):
    """End the job and mark it as finished."""

    kind: Literal["finish"] = "finish"
    reason: str = Field("", description="the reason, a template")

    def templates(self) -> Iterator[str]:
        yield self.reason


class Fail(Templated):
    """End the job and mark it as failed: nothing restarts it."""

    kind: Literal["fail"] = "fail"
    reason: str = Field("", description="the reason, a template")

    def templates(self) -> Iterator[str]:
        yield self.reason


class Log(Templated):
    """Log a message in the session's log."""

    kind: Literal["log"] = "log"
    message: str = Field("{event}", description="the message, a template")
    level: Literal["info", "warning", "error"] = Field("warning", description="log level")

    def templates(self) -> Iterator[str]:
        yield self.message


class Publish(Templated):
    """Emit a Prefect event, for Prefect's automations and for other rules of the session."""

    kind: Literal["publish"] = "publish"
    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$", max_length=60, description="the event's name")
    payload: dict[str, str] = Field(
        default_factory=dict, description="the event's payload, templates"
    )

    def templates(self) -> Iterator[str]:
        yield from self.payload.values()


class WriteFile(Templated):
    """Append a line to a file, unless it is there already."""

    kind: Literal["write_file"] = "write_file"
    path: str = Field(
        description="the file, a template; relative to the session's directory. A value that an "
        "event brings never leads out of the directory that stands in front of it"
    )
    line: str = Field(description="the line, a template")

    def templates(self) -> Iterator[str]:
        yield from (self.path, self.line)


class ExcludeNodes(Templated):
    """Add nodes to the session's exclusion list: submissions avoid them until the entry expires."""

    kind: Literal["exclude_nodes"] = "exclude_nodes"
    nodes: tuple[str, ...] = Field(
        (),
        description="templates; by default the event's node, or the attempt's only node",
    )
    expires: Duration = Field(86400.0, description="how long the nodes are excluded")

    def templates(self) -> Iterator[str]:
        yield from self.nodes


_Shipped = (
    Start
    | Keep
    | Measure
    | Delete
    | Save
    | Avoid
    | Launch
    | Restart
    | RunCommand
    | Cancel
    | Finish
    | Fail
    | Log
    | Publish
    | WriteFile
    | ExcludeNodes
)
_KINDS = {kind for model in get_args(_Shipped) for kind in entry_points.kinds(model)}
_INSTALLED = entry_points.installed(
    entry_points.ACTIONS, OwnAction, entry_points.kinds, {*_KINDS, "when", "within"}
)
if TYPE_CHECKING:
    Action = _Shipped | OwnAction
else:
    Action = Annotated[Union[(*get_args(_Shipped), *_INSTALLED)], Field(discriminator="kind")]
ENDS_AN_ATTEMPT = (Restart, Finish, Fail)
"""Actions that a verdict waits for: they decide what the end of an attempt means."""


class ConditionalAction(FrozenModel):
    """One action of a rule and its conditions: exactly one key names the action."""

    launch: Launch | None = Field(None, description="submit another job in the same session")
    restart: Restart | None = Field(None, description="end the attempt, submit the next one")
    run_command: RunCommand | None = Field(None, description="run a command beside the monitor")
    cancel: Cancel | None = Field(None, description="cancel jobs")
    finish: Finish | None = Field(None, description="end the job and mark it as finished")
    fail: Fail | None = Field(None, description="end the job and mark it as failed")
    log: Log | None = Field(None, description="log a message in the session's log")
    publish: Publish | None = Field(None, description="emit a Prefect event")
    write_file: WriteFile | None = Field(None, description="append a line to a file, once")
    exclude_nodes: ExcludeNodes | None = Field(
        None, description="exclude nodes from later submissions"
    )
    when: tuple[Condition, ...] = Field((), description="conditions, all of which have to hold")
    within: Duration = Field(
        86400.0,
        description="deadline for the conditions; after it the action fails, with the condition "
        "that does not hold as its reason",
    )

    @property
    def actions(self) -> list[Action]:
        """The actions that are named."""
        named: list[Any] = [getattr(self, name) for name in type(self).model_fields]
        found: list[Any] = [value for value in named if isinstance(value, FrozenModel)]
        return found

    @property
    def action(self) -> Action:
        return self.actions[0]

    def templates(self) -> Iterator[str]:
        """All templates of the action and its conditions."""
        yield from self.action.templates()
        for condition in self.when:
            yield from condition.templates()

    @model_validator(mode="after")
    def _one_action(self) -> Self:
        if len(self.actions) != 1:
            names = [name for name in type(self).model_fields if name not in ("when", "within")]
            raise ValueError(f"name exactly one action: {', '.join(names)}")
        return self

    @model_serializer(mode="wrap")
    def _only_what_is_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        return {key: value for key, value in content.items() if value is not None}


if not TYPE_CHECKING and _INSTALLED:
    _BROUGHT = {
        kind: (model | None, Field(None, description=(model.__doc__ or kind).splitlines()[0]))
        for model in _INSTALLED
        for kind in entry_points.kinds(model)
    }
    ConditionalAction = create_model(
        "ConditionalAction", __base__=ConditionalAction, __module__=__name__, **_BROUGHT
    )
