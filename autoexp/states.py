"""The table of job states: SLURM's, in SLURM's spelling.

Source: squeue(1) and sacct(1), JOB STATE CODES, of SLURM 22.05 to 25.05.
"""

import re
from enum import StrEnum
from typing import NamedTuple


class Fault(StrEnum):
    """The cause of an end."""

    NOBODY = "nobody"
    USER = "user"
    INFRASTRUCTURE = "infrastructure"
    TIME_LIMIT = "time limit"
    PREEMPTION = "preemption"
    CANCELLED = "cancelled by someone"


class Reaction(StrEnum):
    """The default reaction when an attempt ends in a state."""

    JUDGE = "compare the iteration reached with the target"
    RESUBMIT = "submit again"
    FAIL = "fail the job"


class StateFacts(NamedTuple):
    """One row of the table: a terminal state, its cause, and the default reaction."""

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
    "PREEMPTED": StateFacts(Fault.PREEMPTION, Reaction.RESUBMIT, "preempted by another job"),
    "DEADLINE": StateFacts(Fault.USER, Reaction.FAIL, "could not end before its deadline"),
    "REVOKED": StateFacts(Fault.INFRASTRUCTURE, Reaction.FAIL, "started by a federation sibling"),
    # Ours, after minutes of healthy answers without the job.
    "LOST": StateFacts(Fault.INFRASTRUCTURE, Reaction.RESUBMIT, "unknown to the scheduler"),
}

ENDED_ON_WARNING = "ended on the warning before its time limit"
"""The reason of a TIMEOUT that the scheduler calls FAILED: the command failed after
the signal to save because the limit was near."""

# Live states need no row: whatever is not listed above is alive, because waiting is
# cheaper than forgetting. These are named so that a reader can look them up.
#   PENDING CONFIGURING RUNNING SUSPENDED STOPPED SIGNALING STAGE_OUT COMPLETING RESIZING
#   REQUEUED REQUEUE_HOLD REQUEUE_FED SPECIAL_EXIT RESV_DEL_HOLD
# and our own, before the scheduler knows of the attempt:
WAITING = "WAITING"  # no attempt yet: waits for its checkpoint or for room in the queue
SUBMITTING = "SUBMITTING"  # the intent is on disk, the scheduler's answer is not

# Reasons for which a pending job waits for ever unless a person acts. Source: SLURM's
# src/common/job_state_reason.c and job_reason_codes of 20.11 to 25.11, and what slurmctld writes in
# their place (`state_desc` in job_mgr.c, job_scheduler.c, node_scheduler.c, reservation.c).
_LIMIT = (
    "requests more than a limit of the QOS or the account allows; request less, or see slurm.qos"
)
_USED_UP = "the grant of the account or the QOS is used up; see slurm.account, or ask the site"
_RESERVATION = "its reservation was deleted; see slurm.options.reservation, then cancel it"
_HELD = "held after a failed start or a requeue; see why, then `scontrol release` lets it go"
_DOWN = "the partition takes no jobs now; wait for the site, or see slurm.partition"
_STUCK = {
    "DependencyNeverSatisfied": "the job it depends on failed; cancel it",
    "PartitionTimeLimit": "more time than the partition allows; lower slurm.time_limit_min",
    "PartitionNodeLimit": "more nodes than the partition allows, or has up; lower slurm.nodes",
    "PartitionConfig": "breaks a limit of the partition; see slurm.partition",
    "PartitionDown": _DOWN,
    "PartitionInactive": _DOWN,
    "JobHeldUser": "held; `scontrol release` lets it go",
    "JobHeldAdmin": "held by an admin, or after a failed start; ask them",
    "JobHoldMaxRequeue": "held, for it was requeued too often; see why, then `scontrol release`",
    "JobLaunchFailure": _HELD,
    "BadConstraints": "no node has the requested features; see slurm.options.constraint",
    "InvalidAccount": "the account is no longer valid; see slurm.account",
    "AccountNotAllowed": "the partition does not take this account; see slurm.account",
    "InvalidQOS": "the QOS is no longer valid; see slurm.qos",
    "QOSNotAllowed": "the partition or the account does not take this QOS; see slurm.qos",
    "QOSUsageThreshold": _USED_UP,
    "AccountingPolicy": _LIMIT,
    "AssociationTimeLimit": _LIMIT,
    "QOSTimeLimit": _LIMIT,
    "MaxMemPerLimit": "more memory than the partition allows; lower slurm.options.mem",
    "ReservationDeleted": _RESERVATION,
    "ReservationInvalid": _RESERVATION,
    "BurstBufferOperation": "its burst buffer failed; see slurm.options.bb",
    "DeadLine": "cannot end before its deadline; see slurm.options.deadline",
}
_STUCK_LIKE = (
    ("held|special exit", _HELD),
    ("reservation .*(was deleted|is invalid)", _RESERVATION),
    ("not in group permitted", "you may not use this partition; see slurm.partition"),
    ("burst buffer .*error", "its burst buffer failed; see slurm.options.bb"),
    # What one job requests, not what many have together: that is transient.
    ("(QOS|Assoc)Max.*(PerJob|PerNode)|MaxWall|QOSMin", _LIMIT),
    # Of past jobs too. `…RunMinutes` are those of running jobs, and pass.
    (
        "(QOS|Assoc)Grp(?!.*Run)(.*Minutes|Wall)|(QOS|assoc).*group (max TRES.* minutes|wall)",
        _USED_UP,
    ),
)

_BEFORE = frozenset({SUBMITTING, "PENDING", "CONFIGURING"})
_RUNS = frozenset({"RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "RESIZING"})


def clean(cell: str) -> str:
    """The bare state of a cell such as `CANCELLED by 1000` or `COMPLETED+`."""
    words = cell.split()
    return words[0].rstrip("+") if words else ""


def canceller(cell: str) -> int | None:
    """User id of the canceller in the cell `CANCELLED by 1000`; None if there is none."""
    state, by, who = [*cell.split(), "", "", ""][:3]
    known = (state, by) == ("CANCELLED", "by") and who.isascii() and who.isdigit()
    return int(who[:10]) if known else None


def is_terminal(state: str) -> bool:
    """True if the attempt is over; an unknown state is live."""
    return state in _TERMINAL


def is_running(state: str) -> bool:
    """True if processes of the job may be alive on a node."""
    return state in _RUNS


def is_before_start(state: str) -> bool:
    """True if, as far as the scheduler has said, the job has not started."""
    return state in _BEFORE


def stuck(reason: str) -> str | None:
    """Advice for a pending job with this reason; None when it only has to wait."""
    # A reason's text has underscores instead of spaces in some versions, and parentheses in others.
    plain = reason.strip("() ").replace("_", " ")
    if plain in _STUCK:
        return _STUCK[plain]
    found = (advice for words, advice in _STUCK_LIKE if re.search(words, plain, re.IGNORECASE))
    return next(found, None)


def facts(state: str) -> StateFacts:
    """The row of a terminal state; raises KeyError for a live one."""
    return _TERMINAL[state]


def terminal_states() -> tuple[str, ...]:
    """The terminal states, in the order of the table."""
    return tuple(_TERMINAL)


class Activity(StrEnum):
    """What a job that is not over is doing, in a person's words."""

    WAITING = "Waiting"
    QUEUED = "Pending in queue"
    RUNNING = "Running"
    ROLLING_BACK = "Rolling back"
    RESUBMITTING = "Resubmitting"


class Kind(StrEnum):
    """The kind of a job."""

    TRAIN = "train"
    COOLDOWN = "cooldown"
    MERGE = "merge"
    BASELINE = "baseline"
    EVALUATE = "evaluate"
    COMMAND = "command"
    UPLOAD = "upload"

    @property
    def trains(self) -> bool:
        """True if its jobs run the trainer."""
        return self in (Kind.TRAIN, Kind.COOLDOWN, Kind.BASELINE)


class Verdict(StrEnum):
    """The meaning of an ended attempt for its job."""

    FINISHED = "finished"
    CONTINUE = "continue"
    FAILED = "failed"
