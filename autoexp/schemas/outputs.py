"""What `--json` prints, as models, and as the JSON Schemas that ship with autoexp.

`python -m autoexp.schemas.outputs` writes the files beside this module, as `make docs` does.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter

from autoexp.backends.megatron.compatibility import Comparison
from autoexp.operations.drill.judgement import Outcome
from autoexp.planning.plan import Plan
from autoexp.reports.status import Status
from autoexp.reports.upkeep.checkpoints import CheckpointList
from autoexp.reports.upkeep.goodput import Goodput
from autoexp.reports.upkeep.nodes import NodeList
from autoexp.rules.events import Event
from autoexp.session.action_records import ActionRecord
from autoexp.tracking.send import Sent

FOLDER = Path(__file__).parent


class PlanPoint(BaseModel):
    """A point of a sweep."""

    number: int
    name: str
    settings: dict[str, Any]


class PlanOutput(Plan):
    """`autoexp plan --json`."""

    project: str
    points: tuple[PlanPoint, ...]
    gpu_hours: float
    jobs_of_unknown_length: int


class SessionRow(BaseModel):
    """A session of `autoexp sessions list --json`."""

    session: str
    created: str
    """ISO 8601, or `?`."""
    state: str
    """running, stopped, finished, failed, unreadable, or damaged."""
    jobs: int


class Explanation(BaseModel):
    """`autoexp explain --json`."""

    session: str
    job: str
    state: str
    verdict: str | None
    reason: str | None
    sentences: list[str]
    """The state first, then the history."""
    log: str | None
    log_end: list[str]
    """Of a job that failed by itself: the last lines of its log."""


class Compared(BaseModel):
    """A row of `autoexp compare --json`; settings that differ and scores are further keys."""

    model_config = ConfigDict(extra="allow")

    session: str
    job: str
    iteration: int | None
    verdict: str | None
    final_loss: float | None
    gpu_hours_spent: float
    goodput: float | None
    """Share of its hours that new iterations took."""


class Hours(BaseModel):
    """`autoexp budget --json`."""

    session: str
    planned_gpu_hours: float
    jobs_of_unknown_length: int
    spent_gpu_hours: float
    stop_above: float | None


class ProgressLine(BaseModel):
    """A line of a log that names an iteration."""

    line: str
    iteration: int
    loss: float | None
    learning_rate: float | None
    seconds_per_iteration: float | None


class LogRead(BaseModel):
    """`autoexp backend check-log --json`."""

    log: str
    lines: int
    read: int
    """Lines that name an iteration."""
    first: ProgressLine | None
    last: ProgressLine | None
    last_line: str
    unread: list[str]
    """Texts in place of numbers, the first of each kind."""


class RehearsedAction(BaseModel):
    """What a rule would have done."""

    action: str
    when: list[str]
    """The keys of its conditions."""


class RehearsedEvent(BaseModel):
    """An event that a preset would have seen in a log."""

    event: Event
    description: str
    actions: list[RehearsedAction]


class RulesTest(BaseModel):
    """`autoexp rules test --json`."""

    events: list[RehearsedEvent]
    counts: dict[str, int]
    """Lines found, by log rule."""
    silent: list[str]
    """Rules that found nothing."""
    reached: int | None
    """The last iteration in the log."""
    warning: str | None


class SessionPlace(BaseModel):
    """`autoexp sessions show --json`."""

    session: str
    path: str
    created: str
    state: str
    config: str
    overrides: list[str]
    outputs: dict[str, str]
    """Output directories by job."""


def _of(shape: Any) -> Callable[[], dict[str, Any]]:
    return lambda: TypeAdapter(shape).json_schema(mode="serialization")


def _event_line() -> dict[str, Any]:
    """The schema of an event, with its time and its key."""
    schema = _of(Event)()
    for definition in schema["$defs"].values():
        if "kind" in definition.get("properties", {}):
            definition["properties"] |= {"time": {"type": "string"}, "key": {"type": "string"}}
            definition["required"] = [*definition.get("required", []), "time", "key"]
    return schema


SCHEMAS: dict[str, Callable[[], dict[str, Any]]] = {
    "plan": _of(PlanOutput),
    "status": _of(Status),
    "sessions-list": _of(list[SessionRow]),
    "sessions-show": _of(SessionPlace),
    "events": _event_line,
    "explain": _of(Explanation),
    "compare": _of(list[Compared]),
    "budget": _of(Hours),
    "checkpoints": _of(CheckpointList),
    "drill": _of(Outcome),
    "goodput": _of(list[Goodput]),
    "track": _of(list[Sent]),
    "nodes-list": _of(NodeList),
    "queue-list": _of(list[ActionRecord]),
    "queue-show": _of(ActionRecord),
    "rules-test": _of(RulesTest),
    "backend-check": _of(Comparison),
    "backend-check-log": _of(LogRead),
}
"""By the name of the file: the command that prints it."""


def text_of(name: str) -> str:
    """A schema as its file holds it."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **SCHEMAS[name]()}
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


def write(folder: Path) -> None:
    """Write the files of all schemas."""
    for name in SCHEMAS:
        (folder / f"{name}.json").write_text(text_of(name))


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
