"""Jobs that have left the queue: how they ended, or when they are given up for lost."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from autoexp import states
from autoexp.errors import SchedulerUnavailable
from autoexp.model import now
from autoexp.schedulers.base import Sighting, Ticket, read_claim
from autoexp.schedulers.exit_files import from_exit_file
from autoexp.storage import atomic

# Accounting says RUNNING for seconds after a job's end, and for ever of one whose end it never
# heard of (sacctmgr(1), "show runawayjobs").
_RUNAWAY_AFTER_S = 3600.0
# Where sacct is silent: how often `lost_after_s` has to pass, and for how long at the least.
_WITHOUT_ACCOUNTS = 3
_SHORTEST_SILENCE_S = 20.0
_GIVEN_UP = "given-up"
"""Stands in the directory of an attempt that was thought lost, before it is told to end."""
_UNKNOWN = "SLURM does not know any more how it is"


class Gone:
    """How long jobs have been missing while SLURM answered healthily."""

    def __init__(self, lost_after_s: float) -> None:
        self._lost_after_s = lost_after_s
        self._missing: dict[str, Missing] = {}

    def sight(
        self,
        tickets: Sequence[Ticket],
        accounts: Mapping[str, Sighting] | None,
        healthy_s: float,
        before: Mapping[str, str],
        end: Callable[[Ticket], None],
    ) -> dict[str, Sighting]:
        """What is known of jobs that squeue, healthy for `healthy_s` since the last look, lacks.

        `accounts` is what sacct says; None: it did not answer. `before` are the states last seen.
        LOST only after minutes in which none of the two knew the job, three times as long where
        sacct is silent throughout, or an hour more in which only accounting knew it. It is told to
        `end` before, should it live all the same.
        """
        found: dict[str, Sighting] = {}
        lost: dict[str, str] = {}
        missing: dict[str, Missing] = {}
        silence_s = max(_SHORTEST_SILENCE_S, self._lost_after_s * _WITHOUT_ACCOUNTS)
        for ticket in tickets:
            known = None if accounts is None else accounts.get(ticket.key)
            if known is not None and states.is_terminal(known.state):
                found[ticket.key] = known
            elif (own := from_exit_file(ticket)) is not None:
                found[ticket.key] = own
            else:
                gone = self._missing.get(ticket.key)
                # What is missed for the first time is missing since now.
                gone = Missing() if gone is None else gone.longer(healthy_s, accounts is None)
                missing[ticket.key] = gone
                if accounts is None and gone.silent_s >= silence_s:
                    lost[ticket.key] = f"{_UNKNOWN}, and sacct does not answer"
                elif accounts is None and gone.silent_s >= silence_s / _WITHOUT_ACCOUNTS:
                    found[ticket.key] = _unheard_of(ticket, before)
                elif accounts is None or gone.answered_s < self._lost_after_s:
                    continue
                elif known is not None and gone.answered_s < self._lost_after_s + _RUNAWAY_AFTER_S:
                    reason = f"squeue does not list it, sacct says {known.state}"
                    found[ticket.key] = known._replace(reason=reason)
                else:
                    lost[ticket.key] = _UNKNOWN
        self._missing = missing
        return found | _given_up([t for t in tickets if t.key in lost], lost, end)


class Missing(NamedTuple):
    """For how long squeue has answered without a job."""

    answered_s: float = 0.0
    """While sacct answered."""
    silent_s: float = 0.0
    """Since sacct answered last."""

    def longer(self, healthy_s: float, silent: bool) -> "Missing":
        """A look later, before which squeue had been healthy for so long."""
        if silent:
            return Missing(self.answered_s, self.silent_s + healthy_s)
        return Missing(self.answered_s + healthy_s)


def _unheard_of(ticket: Ticket, before: Mapping[str, str]) -> Sighting:
    """A job that squeue does not list, while sacct is silent: as it was, with a warning."""
    # Only a job that has started leaves its claim.
    started = "PENDING" if read_claim(ticket.directory) is None else "RUNNING"
    reason = "squeue does not list it, and sacct does not answer"
    return Sighting(before.get(ticket.key, started), reason)


def ended_by_us(ticket: Ticket, sighting: Sighting) -> Sighting:
    """The end of a job, which is LOST where it lived and ended because it was thought lost.

    A monitor that was killed between the two sees it as cancelled, and nobody cancelled it.
    """
    if sighting.state in ("COMPLETED", "LOST") or not (ticket.directory / _GIVEN_UP).exists():
        return sighting
    return sighting._replace(state="LOST", reason=_UNKNOWN)


def _given_up(
    lost: Sequence[Ticket], reasons: Mapping[str, str], end: Callable[[Ticket], None]
) -> dict[str, Sighting]:
    found = {}
    for ticket in lost:
        with suppress(SchedulerUnavailable, OSError):  # not yet, then
            atomic.make_directory(ticket.directory)
            atomic.write(ticket.directory / _GIVEN_UP, "")
            end(ticket)
            found[ticket.key] = Sighting("LOST", reasons[ticket.key], ended_at=now())
    return found
