"""The values that an event gives to templates and conditions, as text."""

import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from autoexp.rules.describe import describe
from autoexp.rules.events import (
    AttemptJudged,
    BudgetPassed,
    CheckpointComplete,
    Event,
    JobGivenUp,
    Published,
    StateChanged,
)
from autoexp.rules.findings import LogMatched, MetricAlarm

if TYPE_CHECKING:
    from autoexp.jobs.record import JobRecord
    from autoexp.session.session import Session

_LONGEST_NUMBER = 30  # characters; any float is shorter
_BOUNDS = {int: 1 << 63, float: math.inf}

OF_SESSION = ("session.id", "session.path", "project.name", "rule", "event", "python")
OF_JOB = (
    *("job.name", "job.kind", "job.parent", "job.output_dir", "job.save_dir", "job.log"),
    *("job.attempt", "job.job_id", "job.iteration", "job.target_iteration", "job.nodes"),
)
OF_LOG = ("line", "iteration")
OF_STATE = ("state", "old_state", "verdict", "reason")
OF_CHECKPOINT = ("checkpoint_iteration", "checkpoint_path")
OF_METRIC = ("iteration", "value", "expected", "last_good_iteration")
OF_INACTIVITY = ("quiet_s",)
OF_SESSION_EVENT = ("gpu_hours", "name")


def values_of(event: Event, rule: str, session: "Session") -> dict[str, str]:
    """Every name that a rule's templates may use, and its value; what is unknown is empty."""
    filled = {
        "session.id": session.id,
        "session.path": str(session.path),
        "project.name": session.experiment.project.name,
        "rule": rule,
        "event": describe(event),
        "python": sys.executable,
    }
    filled |= dict.fromkeys(OF_JOB, "")
    job = session.jobs.get(event.job)
    if job is not None:
        filled |= _of_job(job)
    return {**filled, **{name: str(value) for name, value in facts(event).items()}}


def captured(event: Event, values: Mapping[str, str]) -> set[str]:
    """The names of the values that come from outside: all that the event itself brings."""
    return set(values) - ({*OF_SESSION, *OF_JOB} - {"event", *facts(event)})


def facts(event: Event) -> dict[str, str | int | float]:
    """What the event itself says, typed."""
    match event:
        case LogMatched():
            known = "" if event.iteration is None else event.iteration
            return {**event.values, "line": event.line, "iteration": known}
        case StateChanged():
            said = {"state": event.new, "old_state": event.old, "reason": event.reason or ""}
            return {"verdict": "", **said}
        case AttemptJudged():
            said = {"state": event.state, "verdict": str(event.verdict), "reason": event.reason}
            return {"old_state": "", **said}
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


def _of_job(job: "JobRecord") -> dict[str, str]:
    attempt = job.attempt
    said = {
        "name": job.spec.name,
        "kind": str(job.spec.kind),
        "parent": job.spec.parent,
        "output_dir": job.spec.output_dir,
        "save_dir": job.spec.save_dir,
        "log": attempt.log if attempt else None,
        "attempt": attempt.number if attempt else None,
        "job_id": attempt.job_id if attempt else None,
        "nodes": attempt.nodes if attempt else None,
        "iteration": job.iteration,
        "target_iteration": job.spec.target_iteration,
    }
    return {f"job.{name}": "" if value is None else str(value) for name, value in said.items()}


def typed(text: str) -> str | int | float:
    """A number where writing the number gives the same text; else the text, byte for byte.

    What JSON cannot hold for every reader is text too: NaN, infinities, more than 64 bits.
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
