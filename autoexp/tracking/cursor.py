"""How far each tracker has got with each job: files of its own in the session's directory.

Nothing else writes them, and no record of the loop knows of them.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from autoexp.storage import atomic, migrations
from autoexp.tracking.tracker import Kept

FOLDER = "tracking"
"""In the session's directory."""

Stamp = tuple[int, int]
"""Size of a job's metrics, and time of its record: the same as before means nothing new."""


class Pending(BaseModel):
    """A batch that is being sent: after a kill the very same one is sent again."""

    model_config = ConfigDict(extra="forbid")

    end: int
    at_ms: int


class Cursor(BaseModel):
    """How far a tracker has got with one job."""

    model_config = ConfigDict(extra="forbid")

    offset: int = 0
    """Bytes of the job's metrics that were sent."""
    last: int | None = None
    """The last iteration that was sent."""
    rewinds: list[tuple[int, int]] = Field(default_factory=list)
    """How far the trainer had come, and the iteration that it logged next, each time it went back.
    """
    kept: Kept = Field(default_factory=dict)
    told: str = ""
    """How the job stood, as it was sent."""
    sent_at_ms: int = 0
    pending: Pending | None = None


class Stamps(BaseModel):
    """The stamp of each job that has nothing new."""

    model_config = ConfigDict(extra="forbid")

    jobs: dict[str, Stamp] = Field(default_factory=dict)


class Cursors:
    """The cursors of one tracker."""

    def __init__(self, session: Path, tracker: str) -> None:
        self._folder = session / FOLDER / tracker
        self._stamps = session / FOLDER / f"{tracker}.json"

    def load(self, job: str) -> Cursor:
        """Read a job's cursor; raises SessionDamaged for a file that does not parse."""
        path = self._folder / f"{job}.json"
        return migrations.read(path, Cursor) if path.exists() else Cursor()

    def save(self, job: str, cursor: Cursor) -> None:
        atomic.make_directory(self._folder)
        atomic.write(self._folder / f"{job}.json", cursor.model_dump_json() + "\n")

    def load_stamps(self) -> Stamps:
        """Read the stamps of the last pass; raises as `load`."""
        return migrations.read(self._stamps, Stamps) if self._stamps.exists() else Stamps()

    def save_stamps(self, stamps: Stamps) -> None:
        atomic.make_directory(self._stamps.parent)
        atomic.write(self._stamps, stamps.model_dump_json() + "\n")
