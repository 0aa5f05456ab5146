"""The values that an event gives to templates and conditions, as text."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from autoexp.rules.events import (
    AttemptJudged,
    BudgetPassed,
    CheckpointComplete,
    Event,
    JobGivenUp,
    LogMatched,
    MetricAlarm,
    Published,
    StateChanged,
)

if TYPE_CHECKING:
    pass

_LONGEST_NUMBER = 30  # characters; any float is shorter
_BOUNDS = {int: 1 << 63, float: math.inf}

OF_SESSION = ("session.id", "session.path", "project.name", "rule", "event", "python")
OF_JOB = (
    *("job.name", "job.kind", "job.parent", "job.output_dir", "job.save_dir", "job.log"),
    *("job.attempt", "job.job_id", "job.iteration", "job.target_iteration", "job.nodes"),
    *("job.exit_code", "job.launcher_restarts", "job.container", "job.ran_s"),
)
OF_LOG = ("line", "iteration")
OF_STATE = ("state", "old_state", "verdict", "reason")
OF_CHECKPOINT = ("checkpoint_iteration", "checkpoint_path")
OF_METRIC = ("iteration", "value", "expected", "last_good_iteration")
OF_INACTIVITY = ("quiet_s",)
OF_SESSION_EVENT = ("gpu_hours", "name")


def captured(event: Event, values: Mapping[str, str]) -> set[str]:
    """Names of values that come from outside: all that the event itself carries."""
    return set(values) - ({*OF_SESSION, *OF_JOB} - {"event", *facts(event)})


def facts(event: Event) -> dict[str, str | int | float]:
    """The values of the event itself, typed."""
    match event:
        case LogMatched():
            known = "" if event.iteration is None else event.iteration
            return {**event.values, "line": event.line, "iteration": known}
        case StateChanged():
            values = {"state": event.new, "old_state": event.old, "reason": event.reason or ""}
            return {"verdict": "", **values}
        case AttemptJudged():
            values = {"state": event.state, "verdict": str(event.verdict), "reason": event.reason}
            return {"old_state": "", **values}
        case JobGivenUp():
            return {"state": "", "old_state": "", "verdict": "failed", "reason": event.reason}
        case CheckpointComplete():
            return {"checkpoint_iteration": event.iteration, "checkpoint_path": event.path}
        case MetricAlarm():
            return {
                "iteration": event.iteration,
                "value": _or_empty(event.value),
                "expected": _or_empty(event.expected),
                "last_good_iteration": _or_empty(event.last_good),
            }
        case BudgetPassed():
            return {"gpu_hours": event.gpu_hours, "name": ""}
        case Published():
            return {"name": event.name, "gpu_hours": ""}
    return {"gpu_hours": "", "name": "", "quiet_s": getattr(event, "quiet_s", "")}


def _or_empty(value: float | None) -> float | str:
    return "" if value is None else value


def typed(text: str) -> str | int | float:
    """A number where writing the number gives the same text; else the text, byte for byte.

    Values that not every JSON reader can hold stay text too: NaN, infinities, more than 64 bits.
    """
    if len(text) > _LONGEST_NUMBER:
        return text
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        if str(number) == text and abs(number) < _BOUNDS[kind]:
            return number
    return text
