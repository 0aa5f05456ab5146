"""`session.json`: what a session is about."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from autoexp import schema
from autoexp.experiment import Experiment


class SessionMeta(BaseModel):
    """`session.json`: what the session is about."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = schema.VERSION
    session: str
    nonce: str = ""
    """Random: an id may be used again, here or under another sessions root."""
    path: str | None = None
    """The directory that it was made as; None where an older autoexp has made it."""
    created: datetime
    config: str
    overrides: tuple[str, ...] = ()
    experiment: Experiment
    jobs: list[str] = Field(default_factory=list)
    """Names of the jobs, so that a lost file is noticed."""
    flow_run_ids: list[str] = Field(default_factory=list)
    versions: dict[str, str] = Field(default_factory=dict)
    git: dict[str, str] = Field(default_factory=dict)

    @property
    def script(self) -> str:
        """File name of its batch scripts, by which SLURM's commands tell its jobs from others."""
        return f"batch-{self.nonce}.sh" if self.nonce else "batch.sh"
