"""What conditions and actions of packages derive from; it loads no package."""

from abc import abstractmethod
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from autoexp.templates import Templated


class Situation(NamedTuple):
    """What a condition may look at, taken at one moment."""

    now: datetime
    asked_at: datetime
    """When the rule's event happened."""
    acted_at: datetime | None
    """When the rule last acted on this job."""
    values: Mapping[str, str]
    """Values of the event and its job by their names in templates: data, which may be anything."""
    states: Mapping[str, str]
    """States of all jobs by name, in SLURM's spelling."""
    verdicts: Mapping[str, str | None]
    attempts: int
    """Attempts that the job has made."""
    directory: Path
    """The session's directory."""


class Never(Exception):
    """Raised by a condition that will never hold, with the reason."""


class OwnCondition(Templated):
    """A condition of a package: one field, whose name is its key in a rule."""

    @abstractmethod
    def waits_for(self, situation: Situation) -> str | None:
        """What it waits for, in words; None: it holds. Raises Never where it never will.

        Called every tick in a thread, until the action's `within` is over. It changes nothing, and
        the text stays the same while nothing changes.
        """


class OwnAction(Templated):
    """An action of a package: `kind: Literal["notify"] = "notify"` is its key in a rule."""

    kind: str

    @abstractmethod
    def run(self, values: Mapping[str, str], session: Path) -> str | None:
        """Do it, once for each event, in a thread; returns what came of it, for the records.

        A kill may have it run again. What it raises becomes the action's reason. `values` are
        those of the event, as data: they may be anything.
        """
