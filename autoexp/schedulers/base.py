"""The protocol of schedulers."""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

from autoexp import payload, states
from autoexp.errors import SubmissionUncertain
from autoexp.jobs.limits import gpu_hours
from autoexp.jobs.record import Attempt
from autoexp.jobs.spec import JobSpec
from autoexp.model import now
from autoexp.nodes import check
from autoexp.payload import TASKS
from autoexp.resources import copies, inside, node
from autoexp.resources.machines import LocalMachine, SlurmCluster
from autoexp.rules.events import Event, StateChanged
from autoexp.storage import atomic, locks

LOCK = "submit.lock"
WITHDRAWN = "cancelled"
"""Content of the claim of a withdrawn attempt, which no job may run."""
NOT_OURS = "is another job by now: not cancelled"
"""How the answer to a cancellation ends, where the job id has been given to somebody else's job."""
PATIENCE_S = 180.0
_MOVED_S = 300.0


class AttemptRef(NamedTuple):
    """An attempt as a scheduler knows it: its name there, its directory, perhaps its job id.

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
    is_local: bool = False
    """True if it runs beside the monitor, whatever the session's scheduler is."""


class JobStatus(NamedTuple):
    """The scheduler's report on one attempt."""

    state: str
    reason: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    nodes: str | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    warned: bool = False
    """True if it was warned to save because its time limit was near."""
    job_id: str | None = None
    """The job that runs the attempt, where it is not the recorded one."""
    sick_nodes: dict[str, str] = {}  # noqa: RUF012
    """Nodes for which it gave itself back before its trainer, each with the reason."""
    expected_at: datetime | None = None
    """When the scheduler expects to start it; None: it does not say."""

    def at_its_limit(self) -> Self:
        """The end of a command that did not survive our warning, as a TIMEOUT."""
        if not self.warned or self.state != "FAILED":
            return self
        return self._replace(state="TIMEOUT", reason=states.ENDED_ON_WARNING)


class PayloadSpec(NamedTuple):
    """The command that a payload runs, and how it ends it."""

    command: tuple[str, ...]
    environment: dict[str, str]
    grace_s: float
    signal_steps: bool = False
    """True if the trainer runs in steps of srun, which signals kill instead of being passed on."""
    umask: int | None = None
    """Umask of the command, where the payload itself has another one."""
    warning_signal: str = "SIGTERM"
    """The signal that tells the trainer that its time limit is near."""
    warning_file: str | None = None
    """The file that tells it so, in place of a signal."""
    save_signal: str | None = None
    """The signal at which it saves and goes on; None with a file, or where it cannot."""
    save_file: str | None = None
    resumed: tuple[str, ...] = ()
    """The command where there is a checkpoint to go on from; empty: it is the same."""
    files: dict[str, str] = {}  # noqa: RUF012
    """Files that the trainer reads, by path, with their content."""
    before: tuple[str, ...] = ()
    """A command that has to succeed before: the set-up of the nodes."""
    node_environment: dict[str, str] = {}  # noqa: RUF012
    """Variables that are filled in on each node."""
    copies: dict[str, str] = {}  # noqa: RUF012
    """The checkpoint file that each save overwrites, names of its copies, key of its iteration."""
    inside: dict[str, Any] = {}  # noqa: RUF012
    """What a container's runtime is to set inside (`resources/inside.py`); empty without one."""
    signal_alone: bool = False
    """True if the command passes signals on by itself: then it gets them, and not its group."""
    check: dict[str, Any] = {}  # noqa: RUF012
    """The check of the nodes before it (`nodes/check.py`); empty without one."""
    rendezvous: dict[str, str | bool] = {}  # noqa: RUF012
    """The rule by which processes find the first node; empty for its own name."""
    stop: tuple[str, ...] = ()
    """The command that ends what outlives the command's processes; it succeeds where there was any.
    """


class SubmitOptions(NamedTuple):
    """The options of a submission of one attempt."""

    name: str
    log: str
    machine: LocalMachine | SlurmCluster
    time_limit_min: float | None = None
    after: str | None = None
    """Id of the job that has to end first."""
    tasks: tuple[int, ...] = ()
    """Indices of an array's tasks; empty for a job of its own."""
    avoided: tuple[str, ...] = ()
    """Nodes to exclude."""
    still_ours: Callable[[], None] | None = None
    """Raises once the session is another monitor's: asked last, under the submission's lock."""


class Scheduler(Protocol):
    """Submits, finds, queries and cancels attempts. Every call may block: keep it off the loop."""

    def payload_spec(self, spec: JobSpec, attempt: Attempt) -> PayloadSpec:
        """The command for the payload to run."""

    def submit(self, ref: AttemptRef, options: SubmitOptions, lock: int) -> str:
        """Submit and return the job id. `lock` is inherited by the process that submits.

        Raises SubmissionRefused, SubmissionPostponed or SubmissionUncertain.
        """

    def longest_array(self) -> int:
        """Longest array in tasks; 1 where there are no arrays."""

    def find(self, ref: AttemptRef, *, in_flight: bool) -> str | None:
        """The job id of an attempt whose submission may have happened; None: it did not.

        `in_flight` says that another process is submitting it at this moment, so that None means
        only: not yet. Raises SchedulerUnavailable when that is unknown.
        """

    def query(self, refs: Sequence[AttemptRef]) -> dict[str, JobStatus]:
        """Query the attempts, all at once, by key; an absent key is no information.

        Raises SchedulerUnavailable: an outage gives no information about any job.
        """

    def cancel(self, refs: Sequence[AttemptRef]) -> dict[str, str]:
        """Cancel attempts, pending or running; returns the scheduler's answers by key."""

    def tell(self, ref: AttemptRef, name: str) -> str:
        """Signal the payload of a running attempt, `HUP` or `USR1`; returns the answer.

        Raises SchedulerError where there is none to signal, SchedulerUnavailable without an answer.
        """

    def avoid(self, refs: Sequence[AttemptRef], nodes: Sequence[str]) -> None:
        """Exclude nodes for attempts that wait in the queue."""


def prepare(ref: AttemptRef, spec: JobSpec, attempt: Attempt, payload_spec: PayloadSpec) -> None:
    """Write all files that the job needs into the directory of its key, before it is submitted."""
    directory = ref.directory
    if (directory / "spec.json").exists():
        return
    atomic.make_directory(directory)
    output, session = Path(spec.output_dir), directory.parent.parent
    by_umask = not output.is_relative_to(session)
    atomic.make_directory(output, by_umask=by_umask)
    atomic.write(directory / "payload.py", Path(payload.__file__).read_bytes())
    atomic.write(directory / payload.NODE_FILE, Path(node.__file__).read_bytes())
    content = {
        "key": ref.key,
        "command": list(payload_spec.command),
        "environment": payload_spec.environment,
        "cwd": spec.output_dir,
        "log": attempt.log,
        "grace_s": payload_spec.grace_s,
        "warning_signal": payload_spec.warning_signal,
        "signal_steps": payload_spec.signal_steps,
    }
    optional = {
        "umask": payload_spec.umask,
        "warning_file": payload_spec.warning_file,
        "save_signal": payload_spec.save_signal,
        "save_file": payload_spec.save_file,
        "before": list(payload_spec.before) or None,
        "node_environment": payload_spec.node_environment or None,
        "rendezvous": payload_spec.rendezvous or None,
        "inside": payload_spec.inside or None,
        "signal_alone": payload_spec.signal_alone or None,
        "copies": payload_spec.copies or None,
        "stop": list(payload_spec.stop) or None,
        "check": payload_spec.check or None,
        "resumed": _resumed(spec, payload_spec),
    }
    if payload_spec.copies:
        code = Path(copies.__file__).read_bytes()
        atomic.write(directory / payload.COPIES_FILE, code)
    if payload_spec.check:
        atomic.write(directory / payload.CHECK_FILE, Path(check.__file__).read_bytes())
    if payload_spec.inside or payload_spec.stop:
        atomic.write(directory / payload.INSIDE_FILE, Path(inside.__file__).read_bytes())
    for path, text in payload_spec.files.items():
        atomic.make_directory(Path(path).parent, by_umask=by_umask)
        atomic.write(Path(path), text)
    given = {name: value for name, value in optional.items() if value is not None}
    atomic.write_json(directory / "spec.json", content | given)


def _resumed(spec: JobSpec, payload_spec: PayloadSpec) -> dict[str, Any] | None:
    """What a payload needs to know where the command differs once there is a checkpoint."""
    if not payload_spec.resumed:
        return None
    folder, name = spec.trainer.checkpoint_names(Path(spec.save_dir))
    return {"command": list(payload_spec.resumed), "folder": str(folder), "name": name}


def submit_once(
    ref: AttemptRef, options: SubmitOptions, scheduler: Scheduler, *, fresh: bool
) -> str:
    """Submit an attempt unless it has been submitted already; returns its job id.

    `fresh` says that this very process has just written the intent, so that nobody can have
    submitted it, for as long as the session is its own (`SubmitOptions.still_ours`). Otherwise the
    attempt is first looked up by its key. The lock is inherited by the process that submits, so
    one that outlived a killed monitor is waited for.
    """
    with _lock(ref.directory) as lock:
        found = _await_turn(ref, scheduler, lock)
        if found is None and not fresh:
            found = scheduler.find(ref, in_flight=False)
        if found is not None:
            return found
        atomic.step()
        # A process that was stopped for long continues here, and others have taken its place. One
        # that is stopped from here on holds the lock, for which they wait.
        if options.still_ours is not None:
            options.still_ours()
        job_id = scheduler.submit(ref, options, lock)
        atomic.step()
        return job_id


def find_or_forbid(ref: AttemptRef, attempt: Attempt, scheduler: Scheduler) -> str | None:
    """The job id of an intended attempt that is no longer wanted; None: it will never run.

    `ref` is of what was submitted, the whole array where the attempt is a task of one. The
    attempt's claim is taken, so that a submission that is still invisible starts nothing.
    """
    own = ref.directory.parent / attempt.key
    atomic.make_directory(own)
    with _lock(ref.directory) as lock:
        found = _await_turn(ref, scheduler, lock) or scheduler.find(ref, in_flight=False)
        if found is None and not payload.claim(own, WITHDRAWN):
            # It has started between the query and the claim: its claim has the job id.
            return payload.claimed_by(own)
    if found is None or attempt.array_index is None:
        return found
    return f"{found}_{attempt.array_index}"


def _await_turn(ref: AttemptRef, scheduler: Scheduler, lock: int) -> str | None:
    """Wait for the lock; the job id, should another process submit the attempt meanwhile."""
    deadline = time.monotonic() + PATIENCE_S
    while not locks.try_lock(lock):
        found = scheduler.find(ref, in_flight=True)
        if found is not None:
            return found
        if time.monotonic() > deadline:
            raise SubmissionUncertain(
                f"{ref.key}: another process has been submitting it for {PATIENCE_S:.0f} s; "
                f"see who holds {ref.directory / LOCK} (`fuser`), then resume the session"
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
    """True if a process is submitting the attempt or, on the local machine, running it."""
    if not directory.is_dir():
        return False  # whoever asks does not make a session again that was removed
    with _lock(directory) as descriptor:
        return not locks.try_lock(descriptor)


def apply(job: str, attempt: Attempt, status: JobStatus) -> list[Event]:
    """Apply a status to an attempt; returns its change of state, if there is one."""
    requeued = states.is_running(attempt.state) and not states.is_running(status.state)
    if requeued and not states.is_terminal(status.state) and attempt.started_at is not None:
        attempt.earlier_gpu_hours += gpu_hours(attempt, attempt.started_at, now())
        attempt.started_at = None
    attempt.exit_code, attempt.signal = status.exit_code, status.signal
    attempt.nodes = status.nodes or attempt.nodes
    attempt.started_at = status.started_at or attempt.started_at
    attempt.ended_at = status.ended_at or attempt.ended_at
    attempt.warned |= status.warned
    attempt.sick_nodes = status.sick_nodes or attempt.sick_nodes
    attempt.job_id = status.job_id or attempt.job_id
    attempt.expected_at = _moved(attempt.expected_at, status.expected_at)
    old, attempt.reason = attempt.state, status.reason
    if status.state == old:
        return []
    attempt.state = status.state
    attempt.transitions += 1
    return [
        StateChanged(
            job=job,
            attempt=attempt.number,
            position=attempt.transitions,
            old=old,
            new=status.state,
            reason=status.reason,
            exit_code=status.exit_code,
        )
    ]


def _moved(known: datetime | None, expected: datetime | None) -> datetime | None:
    """The expected start; one that moves by a little at each query is not written each time."""
    if known is None or expected is None:
        return expected
    return expected if abs((expected - known).total_seconds()) > _MOVED_S else known


def is_array(ref: AttemptRef) -> bool:
    """True if it is submitted as an array."""
    return (ref.directory / TASKS).exists()


def claimed_by(ref: AttemptRef) -> str | None:
    """The id of the job that has claimed the attempt, or any task of the array."""
    if not is_array(ref):
        return read_claim(ref.directory)
    tasks = json.loads((ref.directory / TASKS).read_text())
    claims = (read_claim(ref.directory.parent / key) for key in tasks.values())
    return next((claim.partition("_")[0] for claim in claims if claim), None)
