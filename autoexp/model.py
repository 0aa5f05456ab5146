"""The base of all models on disk and in configurations."""

from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict

COMPOSING = "composing"
"""Context of a validation of user input, as opposed to a session's records."""


class Closed(BaseModel):
    """A frozen model in which a misspelt key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def now() -> datetime:
    """The time in UTC with time zone, as in all files."""
    return datetime.now(UTC)
