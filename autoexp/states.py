"""One table for the states of a job: SLURM's, spelled as SLURM spells them.

Source: squeue(1) and sacct(1), JOB STATE CODES, of SLURM 22.05 to 25.05.
"""

from enum import StrEnum
from typing import NamedTuple


class Fault(StrEnum):
    """Whose doing an end was."""

    NOBODY = "nobody"
    USER = "user"
    INFRASTRUCTURE = "infrastructure"
    TIME_LIMIT = "time limit"
    PREEMPTION = "preemption"
    CANCELLED = "cancelled by someone"


class Reaction(StrEnum):
    """What happens by default when an attempt ends in a state."""

    JUDGE = "compare the iteration reached with the target"
    RESUBMIT = "submit again"
    FAIL = "fail the job"


class StateFacts(NamedTuple):
    """One row of the table: a terminal state, whose fault it is, and the default reaction."""

    fault: Fault
    reaction: Reaction
    meaning: str


_TERMINAL = {
    "COMPLETED": StateFacts(Fault.NOBODY, Reaction.JUDGE, "exit code 0"),
    "FAILED": StateFacts(Fault.USER, Reaction.FAIL, "exit code other than 0"),
    "TIMEOUT": StateFacts(Fault.TIME_LIMIT, Reaction.RESUBMIT, "reached its time limit"),
    "CANCELLED": StateFacts(Fault.CANCELLED, Reaction.FAIL, "cancelled by a user or an admin"),
    "NODE_FAIL": StateFacts(Fault.INFRASTRUCTURE, Reaction.RESUBMIT, "a node failed"),
    "BOOT_FAIL": StateFacts(Fault.INFRASTRUCTURE, Reaction.RESUBMIT, "a node did not boot"),
    "OUT_OF_MEMORY": StateFacts(Fault.USER, Reaction.FAIL, "used more memory than allowed"),
    "PREEMPTED": StateFacts(Fault.PREEMPTION, Reaction.RESUBMIT, "made room for another job"),
    "DEADLINE": StateFacts(Fault.USER, Reaction.FAIL, "could not end before its deadline"),
    "REVOKED": StateFacts(Fault.INFRASTRUCTURE, Reaction.FAIL, "taken by a federation sibling"),
    # Ours, after minutes of healthy answers in which nobody knew the job.
    "LOST": StateFacts(Fault.INFRASTRUCTURE, Reaction.RESUBMIT, "unknown to the scheduler"),
}

# Live states need no row of their own: whatever is not listed above is alive, because waiting is
# cheaper than forgetting. These are named so that a reader can look them up.
#   PENDING CONFIGURING RUNNING SUSPENDED STOPPED SIGNALING STAGE_OUT COMPLETING RESIZING
#   REQUEUED REQUEUE_HOLD REQUEUE_FED SPECIAL_EXIT RESV_DEL_HOLD
# and our own, before the scheduler knows of the attempt:
WAITING = "WAITING"  # no attempt yet: waits for its checkpoint or for room in the queue
SUBMITTING = "SUBMITTING"  # the intent is on disk, the scheduler's answer is not

# Reasons for which a pending job waits for ever unless somebody does something.
_STUCK = {
    "DependencyNeverSatisfied": "the job it depends on failed; cancel it",
    "PartitionTimeLimit": "more time than the partition allows; lower slurm.time_limit_min",
    "PartitionNodeLimit": "more nodes than the partition allows; lower slurm.nodes",
    "JobHeldUser": "held; `scontrol release` lets it go",
    "JobHeldAdmin": "held by an admin; ask them",
    "BadConstraints": "no node has what it asks for; see slurm.options.constraint",
    "InvalidAccount": "the account is not valid any more; see slurm.account",
    "InvalidQOS": "the QOS is not valid any more; see slurm.qos",
}

_RUNS = frozenset({"RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "RESIZING"})


def clean(cell: str) -> str:
    """The bare state of a cell such as `CANCELLED by 1000` or `COMPLETED+`."""
    words = cell.split()
    return words[0].rstrip("+") if words else ""


def canceller(cell: str) -> int | None:
    """User id of whoever cancelled a job, of the cell `CANCELLED by 1000`; None: it is not said."""
    state, by, who = [*cell.split(), "", "", ""][:3]
    known = (state, by) == ("CANCELLED", "by") and who.isascii() and who.isdigit()
    return int(who[:10]) if known else None


def is_terminal(state: str) -> bool:
    """Whether the attempt is over; an unknown state is live."""
    return state in _TERMINAL


def is_running(state: str) -> bool:
    """Whether processes of the job may be alive on a node."""
    return state in _RUNS


def stuck(reason: str) -> str | None:
    """What to do about a pending job with this reason; None when waiting is all it takes."""
    if reason in _STUCK:
        return _STUCK[reason]
    return "more time than a limit allows; see slurm.qos" if "MaxWall" in reason else None


def facts(state: str) -> StateFacts:
    """The row of a terminal state; raises KeyError for a live one."""
    return _TERMINAL[state]


def terminal_states() -> tuple[str, ...]:
    """All terminal states, in the order of the table."""
    return tuple(_TERMINAL)
