"""What a scheduler has to do for a session."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

from autoexp import payload, states
from autoexp.errors import SubmissionUncertain
from autoexp.jobs.gpu_hours import gpu_hours
from autoexp.jobs.record import Attempt
from autoexp.jobs.spec import JobSpec
from autoexp.model import now
from autoexp.resources.machines import LocalMachine, SlurmCluster
from autoexp.rules.events import Event, StateChanged
from autoexp.storage import atomic, locks

LOCK = "submit.lock"
WITHDRAWN = "cancelled"
"""Stands in the claim of an attempt that nobody may run any more."""
NOT_OURS = "is another one by now: not cancelled"
"""How the answer to a cancellation ends, where the job id has been given to somebody else's job."""
PATIENCE_S = 180.0


class Ticket(NamedTuple):
    """An attempt as a scheduler sees it: its name there, its directory, perhaps its job id.

    Identity is the pair of id and name, since ids are reused after a controller's loss. Where the
    id is not known yet it is name and script: a session of the same id, under another root or of
    another year, uses the same names.
    """

    key: str
    directory: Path
    name: str
    script: str
    """File name of the batch script, which no other session has."""
    job_id: str | None = None


class Sighting(NamedTuple):
    """What a scheduler says of one attempt."""

    state: str
    reason: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    nodes: str | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    warned: bool = False
    """Whether it was told to save because its time limit was near."""
    job_id: str | None = None
    """The job that runs the attempt, where it is another one than was thought."""

    @classmethod
    def from_exit_file(cls, ended: dict[str, Any], nodes: str | None = None) -> Self:
        """How a job ended as its payload wrote it down: COMPLETED, FAILED, or TIMEOUT."""
        state = "COMPLETED" if ended["exit_code"] == 0 else "FAILED"
        own = cls(
            state="TIMEOUT" if ended["limit"] else state,
            reason=ended["reason"],
            exit_code=ended["exit_code"],
            signal=ended["signal"],
            nodes=nodes,
            started_at=datetime.fromtimestamp(ended["started_at"], UTC),
            ended_at=datetime.fromtimestamp(ended["ended_at"], UTC),
            warned=ended["warned"],
        )
        return own.at_its_limit()

    def at_its_limit(self) -> Self:
        """The end of a command that did not survive our warning: it is the time limit's."""
        if not self.warned or self.state != "FAILED":
            return self
        return self._replace(state="TIMEOUT", reason=states.ENDED_ON_WARNING)


class Orders(NamedTuple):
    """What a payload runs, and how it ends it."""

    command: tuple[str, ...]
    environment: dict[str, str]
    grace_s: float
    signal_steps: bool = False
    """Whether the trainer runs in steps of srun, which dies of the signals that it should pass."""
    umask: int | None = None
    """What the command makes files with, where the payload itself has another umask."""


class Request(NamedTuple):
    """What is asked of the scheduler for one attempt."""

    name: str
    log: str
    machine: LocalMachine | SlurmCluster
    time_limit_min: float | None = None
    after: str | None = None
    """Job id that has to end first."""
    tasks: tuple[int, ...] = ()
    """Indices of an array's tasks; empty for a job of its own."""
    avoided: tuple[str, ...] = ()
    """Nodes that it must not run on."""
    still_ours: Callable[[], None] | None = None
    """Raises once the session is another monitor's: asked last, under the submission's lock."""


class Scheduler(Protocol):
    """Submits, finds, looks at and cancels attempts. Every call may block: keep it off the loop."""

    def orders(self, spec: JobSpec, attempt: Attempt) -> Orders:
        """What the payload is to run."""

    def submit(self, ticket: Ticket, request: Request, lock: int) -> str:
        """Submit and return the job id. `lock` is inherited by the process that submits.

        Raises SubmissionRefused, SubmissionPostponed or SubmissionUncertain.
        """

    def longest_array(self) -> int:
        """How many jobs may go as one array; 1 where there are no arrays."""

    def find(self, ticket: Ticket, *, in_flight: bool) -> str | None:
        """The job id of an attempt whose submission may have happened; None: it did not.

        `in_flight` says that another process is submitting it at this moment, so that None means
        no more than: not yet. Raises SchedulerUnavailable when nobody can tell.
        """

    def query(self, tickets: Sequence[Ticket]) -> dict[str, Sighting]:
        """What is known of the attempts, by key, in one query; an absent key is no information.

        Raises SchedulerUnavailable: an outage says nothing about any job.
        """

    def cancel(self, tickets: Sequence[Ticket]) -> dict[str, str]:
        """Cancel, pending or running; returns what the scheduler answered, by key."""

    def avoid(self, tickets: Sequence[Ticket], nodes: Sequence[str]) -> None:
        """Have attempts that wait in the queue start on other nodes than these."""


def prepare(ticket: Ticket, spec: JobSpec, attempt: Attempt, orders: Orders) -> None:
    """Lay out all that the job needs in the directory of its key, before anything is submitted."""
    directory = ticket.directory
    if (directory / "spec.json").exists():
        return
    atomic.make_directory(directory)
    output, session = Path(spec.output_dir), directory.parent.parent
    atomic.make_directory(output, by_umask=not output.is_relative_to(session))
    atomic.write(directory / "payload.py", Path(payload.__file__).read_bytes())
    content = {
        "key": ticket.key,
        "command": list(orders.command),
        "environment": orders.environment,
        "cwd": spec.output_dir,
        "log": attempt.log,
        "grace_s": orders.grace_s,
        "warning_signal": "SIGTERM",
        "signal_steps": orders.signal_steps,
    } | ({} if orders.umask is None else {"umask": orders.umask})
    atomic.write_json(directory / "spec.json", content)


def submit_once(ticket: Ticket, request: Request, scheduler: Scheduler, *, fresh: bool) -> str:
    """Submit an attempt unless that has happened already; returns its job id.

    `fresh` says that this very process has just written the intent, so that nobody can have
    submitted it, for as long as the session is its own (`Request.still_ours`). Otherwise the
    attempt is first looked up by its key. The lock is inherited by the process that submits, so
    one that outlived a killed monitor is waited for.
    """
    with _lock(ticket.directory) as lock:
        found = _await_turn(ticket, scheduler, lock)
        if found is None and not fresh:
            found = scheduler.find(ticket, in_flight=False)
        if found is not None:
            return found
        atomic.step()
        # A process that was stopped for long goes on here, and others have taken its place. One
        # that is stopped from here on holds the lock, for which they wait.
        if request.still_ours is not None:
            request.still_ours()
        job_id = scheduler.submit(ticket, request, lock)
        atomic.step()
        return job_id


def find_or_forbid(ticket: Ticket, attempt: Attempt, scheduler: Scheduler) -> str | None:
    """The job id of an intended attempt that is no longer wanted; None: it will never run.

    `ticket` is of what was submitted, the whole array where the attempt is a task of one. The
    attempt's claim is taken away, so that a submission that nobody can see starts nothing.
    """
    own = ticket.directory.parent / attempt.key
    atomic.make_directory(own)
    with _lock(ticket.directory) as lock:
        found = _await_turn(ticket, scheduler, lock) or scheduler.find(ticket, in_flight=False)
        if found is None and not payload.claim(own, WITHDRAWN):
            # It has started between the question and the claim: it says itself who it is.
            return payload.claimed_by(own)
    if found is None or attempt.array_index is None:
        return found
    return f"{found}_{attempt.array_index}"


def _await_turn(ticket: Ticket, scheduler: Scheduler, lock: int) -> str | None:
    """Wait for the lock; the job id, should another process submit the attempt meanwhile."""
    deadline = time.monotonic() + PATIENCE_S
    while not locks.try_lock(lock):
        found = scheduler.find(ticket, in_flight=True)
        if found is not None:
            return found
        if time.monotonic() > deadline:
            raise SubmissionUncertain(
                f"{ticket.key}: another process has been submitting it for {PATIENCE_S:.0f} s; "
                f"see who holds {ticket.directory / LOCK} (`fuser`), then resume the session"
            )
        time.sleep(0.1)
    return None


def read_claim(directory: Path) -> str | None:
    """The id of the job that runs the attempt in `directory`; None: none has started."""
    holder = payload.claimed_by(directory)
    return None if holder == WITHDRAWN else holder


@contextmanager
def _lock(directory: Path) -> Iterator[int]:
    atomic.make_directory(directory)
    descriptor = locks.open_lock(directory / LOCK)
    try:
        yield descriptor
    finally:
        # Closed, never unlocked: the lock lives on in whoever inherited the descriptor.
        os.close(descriptor)


def is_locked(directory: Path) -> bool:
    """Whether somebody is submitting the attempt or, on the local machine, running it."""
    if not directory.is_dir():
        return False  # whoever asks does not make a session again that was removed
    with _lock(directory) as descriptor:
        return not locks.try_lock(descriptor)


def apply(job: str, attempt: Attempt, sighting: Sighting) -> list[Event]:
    """Take a sighting over into an attempt; returns its change of state, if it is one."""
    requeued = states.is_running(attempt.state) and not states.is_running(sighting.state)
    if requeued and not states.is_terminal(sighting.state) and attempt.started_at is not None:
        attempt.earlier_gpu_hours += gpu_hours(attempt, attempt.started_at, now())
        attempt.started_at = None
    attempt.exit_code, attempt.signal = sighting.exit_code, sighting.signal
    attempt.nodes = sighting.nodes or attempt.nodes
    attempt.started_at = sighting.started_at or attempt.started_at
    attempt.ended_at = sighting.ended_at or attempt.ended_at
    attempt.warned |= sighting.warned
    attempt.job_id = sighting.job_id or attempt.job_id
    old, attempt.reason = attempt.state, sighting.reason
    if sighting.state == old:
        return []
    attempt.state = sighting.state
    attempt.transitions += 1
    return [
        StateChanged(
            job=job,
            attempt=attempt.number,
            position=attempt.transitions,
            old=old,
            new=sighting.state,
            reason=sighting.reason,
        )
    ]
