"""Experiments from Python: composed, planned, run; and the sessions that there are."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoexp.api.handle import Handle
from autoexp.config.compose import Composed
from autoexp.errors import BadInput
from autoexp.flows.engine.compose import compose_words
from autoexp.planning.plan import Plan, above_budget
from autoexp.planning.study import subset
from autoexp.session import find
from autoexp.session.create import create, id_for, plan_of
from autoexp.session.measured_speed import with_measured_speed
from autoexp.session.provenance import provenance
from autoexp.storage.places import sessions_root

_KEY = re.compile(r"[A-Za-z_][\w./-]*")


def compose(
    config: str | None = None,
    *overrides: str,
    values: Mapping[str, Any] | None = None,
    points: str | None = None,
    start: str | None = None,
) -> Composed:
    """Compose and validate an experiment, as `autoexp plan CONFIG OVERRIDE …` does.

    ``values`` are overrides by dotted key, as plain values; ``points`` some points of a sweep, such
    as `"3,5-7"`; ``start`` a session to start from (`--from`). Raises BadInput.
    """
    words = [] if config is None else [config]
    words += overrides
    words += [f"{key}={_written(value)}" for key, value in (values or {}).items()]
    return with_measured_speed(subset(compose_words(words, start), points))


def plan(composed: Composed) -> Plan:
    """The jobs that would be submitted, with their commands; submits nothing. Raises BadInput."""
    return plan_of(composed)


def run(composed: Composed, *, session: str | None = None, confirmed: bool = False) -> Handle:
    """Create a session, and start a monitor for it in a process of its own.

    The monitor outlives this process, and the jobs outlive the monitor. Raises BadInput, also for a
    plan above `budget.confirm_above` that is not ``confirmed``.
    """
    name = session or id_for(composed)
    found = plan_of(composed, name)
    question = above_budget(composed.experiment.budget, found)
    if question is not None and not confirmed:
        raise BadInput(f"{question}; `confirmed=True` agrees to it, or raise the budget")
    path = create(composed, found, sessions_root(), session_id=name, provenance=provenance())
    handle = Handle(path)
    handle.resume()
    return handle


def open_session(name: str | Path | None = None) -> Handle:
    """A session by its id or directory, the newest by default; raises SessionNotFound."""
    return Handle(find.session_path(None if name is None else str(name)))


def sessions() -> list[str]:
    """The ids of all sessions that can be read, the newest last."""
    return [path.name for path in find.session_paths()]


def _written(value: Any) -> str:
    """A plain value as an override has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # Hydra's quotes: a backslash is one, but in front of a quote, at the end, and of `${`.
        kept = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + (m[2] and f"\\{m[2]}"), value)
        return "'" + re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + "\\${", kept) + "'"
    if isinstance(value, Mapping):
        for key in value:
            if not _KEY.fullmatch(str(key)):
                raise BadInput(f"values: the key {key!r} cannot be written in an override")
        inside = (f"{key}: {_written(inner)}" for key, inner in value.items())
        return f"{{{', '.join(inside)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_written, value))}]"
    return str(value)
