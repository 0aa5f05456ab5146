"""What all models on disk and in configurations share."""

from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict

COMPOSING = "composing"
"""Context of a validation that judges what a user wrote, and not what a session recorded."""


class Closed(BaseModel):
    """A frozen model in which a misspelt key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def now() -> datetime:
    """The time, aware and in UTC: what stands on disk."""
    return datetime.now(UTC)
