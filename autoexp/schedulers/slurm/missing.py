"""Jobs that have left the queue: how they ended, or when they count as LOST."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from autoexp import states
from autoexp.errors import SchedulerUnavailable
from autoexp.model import now
from autoexp.schedulers.base import AttemptRef, JobStatus, read_claim
from autoexp.schedulers.exit_files import from_exit_file
from autoexp.storage import atomic

# Accounting says RUNNING for seconds after a job's end, and for ever if it never
# got the end (sacctmgr(1), "show runawayjobs").
_RUNAWAY_AFTER_S = 3600.0
# Where sacct does not answer: how often `lost_after_s` has to pass, and the least time.
_WITHOUT_ACCOUNTS = 3
_SHORTEST_SILENCE_S = 20.0
_GIVEN_UP = "given-up"
"""A file in the directory of an attempt that was presumed lost, before it is cancelled."""
_UNKNOWN = "SLURM no longer knows its state"


class MissingJobs:
    """Tracks how long jobs have been missing while SLURM answered healthily."""

    def __init__(self, lost_after_s: float) -> None:
        self._lost_after_s = lost_after_s
        self._missing: dict[str, Missing] = {}

    def sight(
        self,
        refs: Sequence[AttemptRef],
        accounts: Mapping[str, JobStatus] | None,
        healthy_s: float,
        before: Mapping[str, str],
        end: Callable[[AttemptRef], None],
    ) -> dict[str, JobStatus]:
        """Status of jobs that squeue, healthy for `healthy_s` since the last look, does not list.

        ``accounts` is sacct's report; None: it did not answer. `before` are the states last seen.
        LOST only after minutes in which none of the two knew the job, three times as long where
        sacct never answered, or an hour more in which only accounting knew it. It is cancelled by
        ``end` before, in case it is still alive.
        """
        found: dict[str, JobStatus] = {}
        lost: dict[str, str] = {}
        missing: dict[str, Missing] = {}
        silence_s = max(_SHORTEST_SILENCE_S, self._lost_after_s * _WITHOUT_ACCOUNTS)
        for ref in refs:
            known = None if accounts is None else accounts.get(ref.key)
            if known is not None and states.is_terminal(known.state):
                found[ref.key] = known
            elif (own := from_exit_file(ref)) is not None:
                found[ref.key] = own
            else:
                gone = self._missing.get(ref.key)
                # A job that is missing for the first time is missing since now.
                gone = Missing() if gone is None else gone.longer(healthy_s, accounts is None)
                missing[ref.key] = gone
                if accounts is None and gone.silent_s >= silence_s:
                    lost[ref.key] = f"{_UNKNOWN}, and sacct does not answer"
                elif accounts is None and gone.silent_s >= silence_s / _WITHOUT_ACCOUNTS:
                    found[ref.key] = _unaccounted(ref, before)
                elif accounts is None or gone.answered_s < self._lost_after_s:
                    continue
                elif known is not None and gone.answered_s < self._lost_after_s + _RUNAWAY_AFTER_S:
                    reason = f"squeue does not list it, sacct says {known.state}"
                    found[ref.key] = known._replace(reason=reason)
                else:
                    lost[ref.key] = _UNKNOWN
        self._missing = missing
        return found | _given_up([t for t in refs if t.key in lost], lost, end)


class Missing(NamedTuple):
    """The time for which squeue has answered without a job."""

    answered_s: float = 0.0
    """While sacct answered."""
    silent_s: float = 0.0
    """Since sacct answered last."""

    def longer(self, healthy_s: float, silent: bool) -> "Missing":
        """The same one look later, before which squeue had been healthy for this long."""
        if silent:
            return Missing(self.answered_s, self.silent_s + healthy_s)
        return Missing(self.answered_s + healthy_s)


def _unaccounted(ref: AttemptRef, before: Mapping[str, str]) -> JobStatus:
    """A job that squeue does not list, while sacct does not answer: unchanged, with a warning."""
    # Only a job that has started leaves its claim.
    started = "PENDING" if read_claim(ref.directory) is None else "RUNNING"
    reason = "squeue does not list it, and sacct does not answer"
    return JobStatus(before.get(ref.key, started), reason)


def ended_by_us(ref: AttemptRef, status: JobStatus) -> JobStatus:
    """The end of a job: LOST where it was alive and cancelled because it was presumed lost.

    A monitor that was killed between the two would see it as cancelled by somebody.
    """
    if status.state in ("COMPLETED", "LOST") or not (ref.directory / _GIVEN_UP).exists():
        return status
    return status._replace(state="LOST", reason=_UNKNOWN)


def _given_up(
    lost: Sequence[AttemptRef], reasons: Mapping[str, str], end: Callable[[AttemptRef], None]
) -> dict[str, JobStatus]:
    found = {}
    for ref in lost:
        with suppress(SchedulerUnavailable, OSError):  # not yet, then
            atomic.make_directory(ref.directory)
            atomic.write(ref.directory / _GIVEN_UP, "")
            end(ref)
            found[ref.key] = JobStatus("LOST", reasons[ref.key], ended_at=now())
    return found
