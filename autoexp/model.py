"""The base of all models on disk and in configurations."""

import difflib
from collections.abc import Iterable
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, ValidationError

COMPOSING = "composing"
"""Context of a validation of user input, as opposed to a session's records."""


class FrozenModel(BaseModel):
    """A frozen model in which a misspelt key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def now() -> datetime:
    """The time in UTC with time zone, as in all files."""
    return datetime.now(UTC)


def nearest(name: str, known: Iterable[str], braces: bool = False) -> str:
    """A hint at the known name nearest to `name`, `; did you mean ...?`; empty without one."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean `{f'{{{close[0]}}}' if braces else close[0]}`?" if close else ""


def first_problem(error: ValidationError, *below: str, skip: int = 0) -> str:
    """The first problem of a validation in one line, its path without the first `skip` parts."""
    return problems(error, *below, skip=skip)[0]


def problems(error: ValidationError, *below: str, skip: int = 0) -> list[str]:
    """The problems of a validation, a line each, their paths without the first `skip` parts."""
    lines = []
    for problem in error.errors():
        path = ".".join(str(part) for part in (*below, *problem["loc"][skip:]))
        lines.append(f"{path}: {problem['msg']}" if path else problem["msg"])
    return lines
