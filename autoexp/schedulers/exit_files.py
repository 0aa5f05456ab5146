"""Exit files: a payload's own record of its end, which SLURM may not know, or know otherwise."""

import json
from typing import Any

from autoexp import states
from autoexp.schedulers.base import Sighting, Ticket
from autoexp.storage import atomic


def _exit_file(ticket: Ticket) -> dict[str, Any] | None:
    """The exit file of the payload, if it is of this very job."""
    try:
        ended: dict[str, Any] = json.loads(atomic.read(ticket.directory / "exit.json"))
    except (FileNotFoundError, atomic.WrongFile):
        return None
    return ended if ended["job_id"] == ticket.job_id else None


def from_exit_file(ticket: Ticket) -> Sighting | None:
    """The end of a job where accounting is off."""
    ended = _exit_file(ticket)
    if ended is None:
        return None
    return Sighting.from_exit_file(ended)


def merge_exit_file(ticket: Ticket, sighting: Sighting) -> Sighting:
    """Add what the payload knows better: the command's end, and the warning to save.

    SLURM sees the payload's exit code, which after a signal is 128 and more, and says 0 of jobs
    that were ended from outside.
    """
    if not states.is_terminal(sighting.state):
        return sighting
    ended = _exit_file(ticket)
    if ended is None or ended["superseded"]:
        own_end = sighting.exit_code != 0 or sighting.state == "COMPLETED"
        return sighting if own_end else sighting._replace(exit_code=None)
    known = sighting._replace(
        exit_code=ended["exit_code"], signal=ended["signal"], warned=ended["warned"]
    )
    return known.at_its_limit()
