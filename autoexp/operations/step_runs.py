"""Carries out steps of jobs, phase by phase: the only place where jobs reach the scheduler.

The session flow runs the phases as Prefect tasks, the property test and the simulator run the very
same ones in an order of their own.
"""

import logging
from collections.abc import Callable, Collection, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from autoexp.errors import AutoexpError, SubmissionRefused, SubmitLimitReached
from autoexp.jobs.backend_changes import changed_spec
from autoexp.jobs.record import Attempt, Ending, JobRecord, RestartRequest
from autoexp.jobs.spec import JobSpec
from autoexp.monitor.monitor import Monitor
from autoexp.monitor.recorder import Recorder
from autoexp.monitor.steps import (
    CancelAttempts,
    GiveBack,
    NextStep,
    Replace,
    Submit,
    Withdraw,
    to_cancel,
)
from autoexp.operations import actions, arrays
from autoexp.operations.nodes.avoidance import ToAvoid, to_avoid
from autoexp.operations.phases import OnSession, Phase, Phases
from autoexp.operations.slots import holding
from autoexp.payload import processes_with_cookie
from autoexp.resources.pools import HeldSlots
from autoexp.rules.describe import describe
from autoexp.schedulers.base import (
    AttemptRef,
    Scheduler,
    SubmitOptions,
    find_or_forbid,
    prepare,
    submit_once,
)
from autoexp.session.provenance import note_image
from autoexp.session.session import Session
from autoexp.sinks import IS_EVENT
from autoexp.states import Verdict

Logger = logging.Logger | logging.LoggerAdapter[Any]


class Submission(NamedTuple):
    """An attempt, ready to be submitted."""

    ref: AttemptRef
    spec: JobSpec
    attempt: Attempt
    avoided: ToAvoid
    fresh: bool
    """True if the intent has just been recorded, so that it cannot have been submitted."""
    still_ours: Callable[[], None] | None = None
    """Raises once the session is another monitor's: asked right before the submission."""

    @property
    def title(self) -> str:
        return f"submit {self.spec.name} a{self.attempt.number}"

    @property
    def job(self) -> str:
        return self.spec.name

    def run(self, scheduler: Scheduler) -> str:
        """Submit once, whatever was killed in between; returns the scheduler's job id."""
        prepare(self.ref, self.spec, self.attempt, scheduler.payload_spec(self.spec, self.attempt))
        options = SubmitOptions(
            self.attempt.name,
            self.attempt.log,
            self.spec.machine,
            self.attempt.time_limit_min,
            self.attempt.after,
            avoided=self.avoided.names(self.spec.machine),
            still_ours=self.still_ours,
        )
        return submit_once(self.ref, options, scheduler, fresh=self.fresh)


class Withdrawal(NamedTuple):
    """An attempt that may have been submitted, and is no longer wanted."""

    job: str
    ref: AttemptRef
    attempt: Attempt

    @property
    def title(self) -> str:
        return f"withdraw {self.attempt.key}"

    def run(self, scheduler: Scheduler) -> str | None:
        """Return its job id; None: it will never run."""
        return find_or_forbid(self.ref, self.attempt, scheduler)


class Replacement(NamedTuple):
    """A job whose next attempt begins from an earlier checkpoint, or with a changed backend."""

    spec: JobSpec
    attempts: tuple[AttemptRef, ...]
    """The previous attempts."""
    asked: RestartRequest

    @property
    def title(self) -> str:
        return f"replace {self.spec.name} attempt {self.asked.attempt}"

    @property
    def job(self) -> str:
        return self.spec.name

    def run(self, scheduler: Scheduler) -> dict[str, Any]:
        """Set checkpoints aside, once no process of the job is alive; returns its changes."""
        del scheduler
        if self.asked.roll_back_to is not None:
            alive = [p for t in self.attempts for p in processes_with_cookie(t.key, t.directory)]
            if alive:
                raise TimeoutError(f"{self.spec.name}: processes {alive} are still alive")
            self.spec.trainer.set_aside(Path(self.spec.save_dir), self.asked.roll_back_to)
        return changed_spec(self.spec, self.asked.backend)


class LongestArray(NamedTuple):
    """Query for the longest array, in tasks."""

    title: str = "longest array"

    def run(self, scheduler: Scheduler) -> int:
        return scheduler.longest_array()


class Cancellation(NamedTuple):
    """Attempts that the scheduler is to cancel."""

    job: str | None
    """The one job whose attempts they are; None: there are several."""
    refs: tuple[AttemptRef, ...]
    first: str
    """The first of them, in short."""

    @property
    def title(self) -> str:
        more = f" and {len(self.refs) - 1} more" if len(self.refs) > 1 else ""
        return f"cancel {self.first}{more}"

    def run(self, scheduler: Scheduler) -> dict[str, str]:
        """Cancel; returns the scheduler's answers by key."""
        return scheduler.cancel(self.refs)


def carry_out(step: NextStep, monitor: Monitor, log: Logger) -> Phases:
    """Carry out a step of jobs, phase by phase; failures are retried, and never doubled.

    Whatever happens, the monitor is notified that the step has ended, and chooses the next one.
    """
    try:
        match step:
            case Submit(as_array=True):
                yield from _submit_array(step, monitor, log)
            case Submit():
                yield from _submit(step.jobs[0], monitor, log)
            case Withdraw():
                yield from _withdraw(step.jobs[0], monitor.recorder, log)
            case Replace():
                yield from _replace(step.jobs[0], monitor.recorder, log)
            case CancelAttempts():
                yield from _cancel(step, monitor, log)
            case GiveBack():
                yield from holding.give_back(step.jobs[0], monitor, log)
    except Exception as error:
        reason = (
            str(error) if isinstance(error, AutoexpError) else f"{type(error).__name__}: {error}"
        )
    else:
        yield OnSession(lambda: monitor.worklist.end_step(step))
        return
    failures = yield OnSession(lambda: monitor.worklist.fail_step(step, reason))
    if failures == 1:
        log.warning("%s: %s; retrying", named(step), reason)


def named(step: NextStep) -> str:
    """Name a step for the log."""
    more = f" and {len(step.jobs) - 1} more" if len(step.jobs) > 1 else ""
    match step:
        case CancelAttempts():
            verb = "cancel"
        case GiveBack():
            verb = "give back the slots of"
        case _:
            verb = type(step).__name__.lower()
    return f"{verb} {step.jobs[0]}{more}"


def _submit(name: str, monitor: Monitor, log: Logger) -> Phases:
    recorder = monitor.recorder
    taken = yield from holding.taken(name, monitor, log)
    if taken is False:
        return  # it is considered again when its pool may have slots for it
    slots = taken if isinstance(taken, HeldSlots) else None
    submission = yield OnSession(lambda: recorder.apply(begin_submission, name, log, slots))
    if slots is not None and (submission is None or not submission.fresh):
        yield from holding.returned(slots, monitor, log)
    if submission is None:
        return  # it is wanted no longer, or has no room
    try:
        job_id = yield submission
    except SubmissionRefused as error:
        log.error("%s: refused: %s", submission.spec.title, error, extra={IS_EVENT: True})
        reason = str(error)
        yield OnSession(lambda: recorder.apply(_refused, name, submission.ref.key, reason))
    else:
        yield OnSession(lambda: recorder.apply(_submitted, name, submission.ref.key, job_id))
        log.info("%s: submitted as job %s", submission.spec.title, job_id)


def begin_submission(
    session: Session, name: str, log: Logger, slots: HeldSlots | None = None
) -> Submission | None:
    """Record the intent of an attempt, unless there is one; move remains of a killed save.

    With an attempt that is new, the `slots` that were taken for it are the job's.
    """
    job = session.jobs[name]
    attempt, fresh = job.unsubmitted, False
    if attempt is None:
        fresh = True
        if job.attempts and not job.open_attempts and job.wants_attempt():
            for torn in job.spec.trainer.clear_torn(Path(job.spec.save_dir)):
                log.warning("%s: %s is torn, and was moved aside", job.spec.title, torn)
        attempt = session.begin_attempt(job, slots)
    if attempt is None or job.is_ending:
        return None
    _look_at_image(session, job, attempt, log)
    avoided = to_avoid(session)
    copy = attempt.model_copy()
    return Submission(session.ref(attempt), job.spec, copy, avoided, fresh, session.refuse_lost)


def _look_at_image(session: Session, job: JobRecord, attempt: Attempt, log: Logger) -> None:
    if (changed := note_image(session, job, attempt)) is not None:
        log.warning("%s", describe(changed), extra={IS_EVENT: True})


def _attempt(session: Session, name: str, key: str) -> tuple[JobRecord, Attempt]:
    job = session.jobs[name]
    return job, next(attempt for attempt in job.attempts if attempt.key == key)


def _refused(session: Session, name: str, key: str, reason: str) -> None:
    session.refuse(*_attempt(session, name, key), reason)


def _submitted(session: Session, name: str, key: str, job_id: str) -> None:
    session.record_submission(*_attempt(session, name, key), job_id)


def _submit_array(step: Submit, monitor: Monitor, log: Logger) -> Phases:
    recorder = monitor.recorder
    if monitor.worklist.longest_array is None:
        yield OnSession(partial(_note_longest, monitor, (yield from _longest_array(log))))
        return  # they are put together again, by what is known now
    array = yield OnSession(lambda: recorder.apply(_begin_array, step.jobs, log))
    if array is None:
        return
    try:
        job_ids = yield array
    except SubmissionRefused as error:
        log.error("%s: refused: %s", array.name, error, extra={IS_EVENT: True})
        for task in array.tasks:
            refused = partial(_refused, name=task.spec.name, key=task.ref.key, reason=str(error))
            yield OnSession(partial(recorder.apply, refused))
    except SubmitLimitReached as error:
        moved = yield OnSession(lambda: _split(step.jobs, monitor))
        if not moved:
            raise  # it is tried again when others have ended
        log.warning(
            "%s: %s; %d of its jobs are submitted as another array", array.name, error, len(moved)
        )
    else:
        for task, job_id in zip(array.tasks, job_ids, strict=True):
            taken = partial(_submitted, name=task.spec.name, key=task.ref.key, job_id=job_id)
            yield OnSession(partial(recorder.apply, taken))
        log.info("%s: submitted %d jobs as array %s", array.name, len(job_ids), job_ids[0])


def _begin_array(session: Session, names: Sequence[str], log: Logger) -> arrays.Array | None:
    array = arrays.begin(session, names)
    for task in () if array is None else array.tasks:
        _look_at_image(session, session.jobs[task.spec.name], task.attempt, log)
    return array


def _split(names: Sequence[str], monitor: Monitor) -> list[str]:
    """Halve an array that alone is above the user's submit limit; later arrays are no longer."""

    def halve(session: Session) -> list[str]:
        if not arrays.may_split(session, names):
            return []
        return arrays.split(session, names)

    moved = monitor.recorder.apply(halve)
    if moved:
        work = monitor.worklist
        work.longest_array = min(work.longest_array or len(moved), len(names) - len(moved))
    return moved


def _longest_array(log: Logger) -> Generator[Phase, Any, int]:
    try:
        longest: int = yield LongestArray()
    except Exception as error:
        log.warning("the longest array is not known (%s); jobs are submitted one by one", error)
        return 1
    return longest


def _note_longest(monitor: Monitor, longest: int) -> None:
    monitor.worklist.longest_array = longest


def _withdraw(name: str, recorder: Recorder, log: Logger) -> Phases:
    withdrawal = yield OnSession(lambda: recorder.apply(_unwanted, name))
    if withdrawal is None:
        return
    key = withdrawal.attempt.key
    job_id = yield withdrawal
    if job_id is None:
        reason = yield OnSession(lambda: recorder.apply(_withdrawn, name, key))
        log.info("%s: not submitted: %s", key, reason)
    else:
        yield OnSession(lambda: recorder.apply(_submitted, name, key, job_id))


def _unwanted(session: Session, name: str) -> Withdrawal | None:
    attempt = session.jobs[name].unsubmitted
    if attempt is None:
        return None
    return Withdrawal(name, session.submission_ref(attempt), attempt.model_copy())


def _withdrawn(session: Session, name: str, key: str) -> str | None:
    job, attempt = _attempt(session, name, key)
    session.withdraw(job, attempt)
    return job.cancel_requested or job.reason


def _replace(name: str, recorder: Recorder, log: Logger) -> Phases:
    replacement = yield OnSession(lambda: recorder.apply(_asked_restart, name))
    if replacement is None:
        return
    try:
        changes = yield replacement
    except AutoexpError as error:
        log.error("%s: cannot be restarted: %s", replacement.spec.title, error)
        reason = f"could not be restarted: {error}"
        yield OnSession(lambda: recorder.apply(_not_replaced, name, reason))
    else:
        yield OnSession(lambda: recorder.apply(_replaced, name, changes))


def _asked_restart(session: Session, name: str) -> Replacement | None:
    job = session.jobs[name]
    if job.restart is None:
        return None
    return Replacement(job.spec, tuple(map(session.ref, job.attempts)), job.restart)


def _not_replaced(session: Session, name: str, reason: str) -> None:
    job = session.jobs[name]
    assert job.restart is not None
    ending = Ending(verdict=Verdict.FAILED, action=job.restart.action, reason=reason)
    session.change_job(job, ending=ending, restart=None)


def _replaced(session: Session, name: str, changes: dict[str, Any]) -> None:
    actions.replaced(session, session.jobs[name], changes)


def _cancel(step: CancelAttempts, monitor: Monitor, log: Logger) -> Phases:
    asked = monitor.worklist.asked_to_end
    cancellation = yield OnSession(lambda: monitor.recorder.apply(_ended, step.jobs, asked))
    if cancellation is None:
        return
    answers = yield cancellation

    def note() -> None:
        asked.update(ref.key for ref in cancellation.refs)
        monitor.recorder.apply(Session.record_answers, answers)

    yield OnSession(note)
    for key, answer in answers.items():
        log.info("cancel %s: %s", key, answer)


def _ended(session: Session, names: Sequence[str], asked: Collection[str]) -> Cancellation | None:
    found = [(name, a) for name in names for a in to_cancel(session.jobs[name], asked)]
    if not found:
        return None
    name, first = found[0]
    job = name if {name for name, _ in found} == {name} else None
    return Cancellation(job, tuple(session.ref(a) for _, a in found), f"{name} a{first.number}")
