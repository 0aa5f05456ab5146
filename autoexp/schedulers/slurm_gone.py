"""Jobs that have left the queue: how they ended, or when they are given up for lost."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from autoexp import states
from autoexp.errors import SchedulerUnavailable
from autoexp.jobs import now
from autoexp.schedulers.base import Sighting, Ticket
from autoexp.schedulers.exit_files import from_exit_file

# Accounting says RUNNING for seconds after a job's end, and for ever of one whose end it never
# heard of (sacctmgr(1), "show runawayjobs").
_RUNAWAY_AFTER_S = 3600.0
_GIVEN_UP = "given-up"
"""Stands in the directory of an attempt that was thought lost, before it is told to end."""
_UNKNOWN = "SLURM does not know any more how it is"


class Gone:
    """How long jobs have been missing while SLURM answered healthily."""

    def __init__(self, lost_after_s: float) -> None:
        self._lost_after_s = lost_after_s
        self._missing_s: dict[str, float] = {}

    def sight(
        self,
        tickets: Sequence[Ticket],
        accounts: Mapping[str, Sighting] | None,
        healthy_s: float,
        end: Callable[[Ticket], None],
    ) -> dict[str, Sighting]:
        """What is known of jobs that squeue, healthy for `healthy_s` since the last look, lacks.

        `accounts` is what sacct says; None: it did not answer. LOST only after minutes in which
        none of the two knew the job, or an hour more in which only accounting did. It is told to
        `end` before, should it live all the same.
        """
        found: dict[str, Sighting] = {}
        lost: list[Ticket] = []
        missing_s: dict[str, float] = {}
        for ticket in tickets:
            known = None if accounts is None else accounts.get(ticket.key)
            if known is not None and states.is_terminal(known.state):
                found[ticket.key] = known
            elif (own := from_exit_file(ticket)) is not None:
                found[ticket.key] = own
            else:
                missing = self._longer(ticket, 0.0 if accounts is None else healthy_s)
                missing_s[ticket.key] = missing
                if accounts is None or missing < self._lost_after_s:
                    continue
                if known is not None and missing < self._lost_after_s + _RUNAWAY_AFTER_S:
                    reason = f"squeue does not list it, sacct says {known.state}"
                    found[ticket.key] = known._replace(reason=reason)
                else:
                    lost.append(ticket)
        self._missing_s = missing_s
        return found | _given_up(lost, end)

    def _longer(self, ticket: Ticket, healthy_s: float) -> float:
        """For how long it has been missing; what is missed for the first time, since now."""
        missing = self._missing_s.get(ticket.key)
        return 0.0 if missing is None else missing + healthy_s


def ended_by_us(ticket: Ticket, sighting: Sighting) -> Sighting:
    """The end of a job, which is LOST where it lived and ended because it was thought lost.

    A monitor that was killed between the two sees it as cancelled, and nobody cancelled it.
    """
    if sighting.state == "COMPLETED" or not (ticket.directory / _GIVEN_UP).exists():
        return sighting
    return sighting._replace(state="LOST", reason=_UNKNOWN)


def _given_up(lost: Sequence[Ticket], end: Callable[[Ticket], None]) -> dict[str, Sighting]:
    found = {}
    for ticket in lost:
        with suppress(SchedulerUnavailable, OSError):  # not yet, then
            ticket.directory.mkdir(parents=True, exist_ok=True)
            (ticket.directory / _GIVEN_UP).touch()
            end(ticket)
            found[ticket.key] = Sighting("LOST", _UNKNOWN, ended_at=now())
    return found
