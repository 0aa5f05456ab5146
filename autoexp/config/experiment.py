"""The experiment as validated: closed, frozen and described, so that a typo is an error."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from autoexp.backends.protocol import Backend
from autoexp.backends.registry import AnyBackend
from autoexp.config.cooldowns import Baseline, Cooldown, Merge
from autoexp.config.quantities import Quantity
from autoexp.config.stages import Stage, StageName
from autoexp.config.sweep import Sweep
from autoexp.config.values.lengths import with_iterations
from autoexp.config.values.repeats import MOST_REPEATS
from autoexp.dotted import flat
from autoexp.jobs.budget import Budget
from autoexp.model import COMPOSING, FrozenModel
from autoexp.nodes.policy import NodePolicy
from autoexp.resources.containers import Container, NoContainer
from autoexp.resources.machines import Machine
from autoexp.retention.policy import Retention
from autoexp.rules.ruleset import Rules
from autoexp.tracking.settings import Tracking

JobName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=60,
        description="letters, digits, `.`, `_`, `-`; 60 characters at most: it is part of file "
        "names and of the scheduler's job name",
    ),
]


class Project(FrozenModel):
    """Name of the experiment and location of its output."""

    name: JobName = Field(description="names the session and the trunk's job")
    description: str = Field("", description="a one-line description")
    output_root: str | None = Field(
        None, description="where jobs write; by default `output/` inside the session"
    )
    share: Literal["owner", "group"] = Field(
        "owner", description="who else may read the session's files; nobody else may write"
    )


class CheckpointSource(FrozenModel):
    """A complete checkpoint that is on disk already, from which cooldowns branch."""

    session: str | None = Field(None, description="the session it comes from, if any")
    job: str | None = Field(None, description="the job of that session that wrote it")
    iteration: int = Field(gt=0, description="its iteration")
    path: str = Field(description="its path")
    samples: int | None = Field(
        None, gt=0, description="samples seen there, where the backend's settings do not say it"
    )
    tokens: int | None = Field(None, gt=0, description="tokens seen there, in the same case")


class Monitoring(Rules):
    """Intervals of looks, publishing and limits; and the rules."""

    file_tick_s: float = Field(2.0, gt=0, description="seconds between looks at logs and folders")
    save_progress_every_s: float = Field(
        10.0, ge=0, description="seconds between writes of a job's record when only numbers changed"
    )
    publish_every_s: float = Field(
        30.0, gt=0, description="least seconds between updates in Prefect without a change of state"
    )
    evaluate_command: tuple[str, ...] = Field(
        (), description="command of evaluation presets for a checkpoint, with templates of rules"
    )
    heartbeat_url: str | None = Field(
        None,
        pattern=r"^https?://[^\s/]+\S*$",
        description="a URL that is pinged (GET), at most once a minute, after a look that the "
        "scheduler answered: whoever expects the ping notices when nobody watches",
    )
    max_attempts_without_progress: int = Field(
        3, gt=0, description="attempts in a row without a new iteration before a job fails"
    )


class Experiment(FrozenModel):
    """One session: a trunk, where it runs, and the cooldowns that branch from it."""

    project: Project
    backend: AnyBackend = Field(description="which trainer, and its arguments")
    slurm: Machine = Field(description="where jobs run")
    monitoring: Monitoring = Field(default_factory=Monitoring)
    container: Container = Field(
        default_factory=NoContainer, description="the image that the trainer runs in"
    )
    cooldowns: tuple[Cooldown, ...] = ()
    baselines: tuple[Baseline, ...] = Field(
        (), description="runs from scratch with another schedule, beside the training"
    )
    merges: tuple[Merge, ...] = ()
    start: CheckpointSource | None = Field(
        None,
        description="a checkpoint to branch from instead of training; set by `--from`, and by the "
        "deployment `cooldown`",
    )
    stages: dict[StageName, Stage | None] = Field(
        default_factory=dict,
        description="jobs after the training and its cooldowns; `null` switches one off",
    )
    sweep: Sweep | None = Field(None, description="many settings of the experiment, in one session")
    budget: Budget = Field(default_factory=Budget, description="GPU hours")
    nodes: NodePolicy | None = Field(
        None, description="a check of nodes before the trainer, and nodes to avoid"
    )
    retention: Retention | None = Field(
        None, description="which checkpoints are kept; unset: nothing is ever deleted"
    )
    tracking: Tracking | None = Field(
        None, description="trackers that the monitor sends curves to: W&B, MLflow, TensorBoard"
    )
    repeats: int = Field(
        1, gt=0, le=MOST_REPEATS, description="runs of each setting, with seeds that differ"
    )
    derived: dict[str, int | float | str] = Field(
        default_factory=dict,
        description="helper values by name, and settings that follow from others by dotted key: "
        "`{width: 512, backend.args.ffn_hidden_size: 4 * width}`",
    )
    length: Quantity | None = Field(
        None, description="set by autoexp where the training's length is an amount: `50B`"
    )

    @model_validator(mode="before")
    @classmethod
    def _count_iterations(cls, values: Any, info: ValidationInfo) -> Any:
        if not isinstance(values, dict):
            return values
        if info.context == COMPOSING and values.get("length") is not None:
            raise ValueError("`length`: give an amount as the trainer's own length: `50B`")
        return with_iterations(values, info.context)

    @field_validator("derived", mode="before")
    @classmethod
    def _flat(cls, written: Any) -> Any:
        return flat(written) if isinstance(written, dict) else written

    @property
    def trainer(self) -> Backend:
        """The backend, as the protocol that all backends implement."""
        return self.backend


# For editors

_WRITTEN = {"type": "string"}
"""A text in place of a number or a list: `${...}`, `???`, `10m`, `6B`, one filter."""


def json_schema(group: str | None = None) -> dict[str, Any]:
    """The JSON Schema of configuration files, or of the files of a group such as `slurm`.

    A file holds a part of an experiment: nothing is required, and the union that a part belongs to
    is told by its keys. Raises KeyError for an unknown group.
    """
    whole = Experiment.model_json_schema()
    names = {"": whole, **whole["$defs"]}
    for name, schema in names.items():
        _loosen(schema, name)
    known = whole["properties"]
    wanted = {"type": "object", **whole} if group is None else dict(known[group])
    title = "autoexp" if group is None else f"autoexp: {group}"
    start = {"$schema": "http://json-schema.org/draft-07/schema#", "title": title}
    definitions = {"definitions": whole.pop("$defs")}
    wanted.pop("$defs", None)
    found: dict[str, Any] = _renamed({**wanted, **start, **definitions})
    return found


def _loosen(schema: dict[str, Any], name: str) -> None:
    """Let a part of an experiment be written as configuration files are."""
    extra = {"defaults": {"type": "array", "description": "files that this one begins from"}}
    extra["block"] = {"type": "string", "description": "a Prefect block in place of the values"}
    for part in _parts(schema):
        part.pop("required", None)
        part.pop("discriminator", None)
        if "oneOf" in part:
            part["anyOf"] = part.pop("oneOf")
        if part.get("additionalProperties") is False:
            part["properties"] = {**part.get("properties", {}), **extra}
        if part.get("additionalProperties") == {"type": "string"}:  # numbers become text
            part["additionalProperties"] = {"type": ["string", "number", "boolean"]}
        if part.get("type") in ("number", "integer", "boolean", "array"):
            own = {key: part.pop(key) for key in list(part) if key not in ("title", "description")}
            part["anyOf"] = [own, _WRITTEN]
    if name == "Quantity":
        own = dict(schema)
        schema.clear()
        schema["anyOf"] = [own, _WRITTEN, {"type": "number"}]


def _parts(schema: Any) -> Iterator[dict[str, Any]]:
    """A schema and all schemas in it, the innermost first."""
    if isinstance(schema, list):
        for inner in schema:
            yield from _parts(inner)
    elif isinstance(schema, dict):
        for key, inner in schema.items():
            if key in ("properties", "patternProperties"):
                yield from _parts(list(inner.values()))
            elif key not in ("$defs", "const", "default", "enum", "examples"):
                yield from _parts(inner)
        yield schema


def _renamed(schema: Any) -> Any:
    """References as in draft 7, which editors' YAML servers read."""
    if isinstance(schema, list):
        return [_renamed(inner) for inner in schema]
    if isinstance(schema, dict):
        return {key: _renamed(inner) for key, inner in schema.items()}
    if isinstance(schema, str):
        return schema.replace("#/$defs/", "#/definitions/")
    return schema
