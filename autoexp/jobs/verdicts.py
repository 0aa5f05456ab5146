"""Verdicts on ended attempts. COMPLETED is not finished: the target says what finished is."""

from pathlib import Path
from typing import NamedTuple

from autoexp import states
from autoexp.jobs.record import Attempt, JobRecord
from autoexp.jobs.scores import NoScores, read_scores
from autoexp.jobs.tracebacks import (
    CH_RUN,
    DOCKER_NOT_STARTED,
    FATAL,
    NOT_STARTED,
    last_exception,
    last_of_docker,
)
from autoexp.resources.containers import Docker
from autoexp.states import ENDED_ON_WARNING, Fault, Reaction, StateFacts, Verdict

_MOST_NAMES = 5
_BY_EXIT_CODE = "FAILED (exit code"
_RESTARTED = "restarted: "
_ON_SAVING = 'docs/slurm.md, "The warning before the time limit"'


class Judgement(NamedTuple):
    """A verdict and the sentence that explains it."""

    verdict: Verdict
    reason: str


def judge(job: JobRecord, attempt: Attempt, *, most_without_progress: int) -> Judgement:
    """Judge an attempt in a terminal state, after its log and its checkpoints have been read.

    The target is reached when its checkpoint lies in the save directory: a log says as well what
    was saved into the memory of a container, or on a disk that was full.
    After a warning that the time limit is near, an ending with progress is an interruption,
    whatever its exit code (torchrun exits 1 there), and one without is the time limit's.
    """
    if attempt.wrong_start is not None:
        return Judgement(Verdict.FAILED, attempt.wrong_start)
    facts = states.facts(attempt.state)
    ended_well = facts.reaction is Reaction.JUDGE
    how = _how_it_ended(job, attempt, facts)
    target = job.spec.target_iteration
    rolled_back = job.restart is not None and job.restart.roll_back_to is not None
    reached = target is not None and ended_well and job.saved_iteration >= target
    if target is not None and not rolled_back and (reached or target in job.checkpoints):
        return Judgement(Verdict.FINISHED, f"reached iteration {target}")
    if job.cancel_requested:
        return Judgement(Verdict.FAILED, f"cancelled: {job.cancel_requested}")
    if job.ending is not None:
        return Judgement(job.ending.verdict, job.ending.reason)
    if not counts(job, attempt):
        return Judgement(Verdict.CONTINUE, "was queued behind an attempt that restarts")
    if attempt.sick_nodes and job.restart is None:
        return _given_back(job, attempt)
    progressed = made_progress(job, attempt)
    if job.restart is not None:
        how = f"{_RESTARTED}{job.restart.reason}"
    elif target is None and ended_well:
        return Judgement(Verdict.FINISHED, "exit code 0")
    again = facts.reaction is Reaction.RESUBMIT or job.restart is not None
    interrupted = again or (attempt.warned and (progressed or attempt.state == "FAILED"))
    where = "" if target is None else f" at iteration {_reached(job)} of {target}"
    if ended_well and target is not None and _reached(job) >= target:
        how, where = f"{how}, but {_unsaved(job, target)}", ""
    if not interrupted and not ended_well:
        return Judgement(Verdict.FAILED, how)
    if not progressed and job.attempts_without_progress + 1 >= most_without_progress:
        return Judgement(
            Verdict.FAILED,
            f"{how}; {most_without_progress} attempts in a row without a new iteration",
        )
    return Judgement(Verdict.CONTINUE, f"{how}{where}")


def judge_by_files(job: JobRecord, attempt: Attempt, *, most_without_progress: int) -> Judgement:
    """Judge an attempt, and read what its files add: scores, or the exception that ended it."""
    judgement = judge(job, attempt, most_without_progress=most_without_progress)
    return with_exception(job, attempt, with_scores(job, judgement))


def _given_back(job: JobRecord, attempt: Attempt) -> Judgement:
    """Judge an attempt that ended for sick nodes before its trainer: so often that is no fault."""
    most = job.spec.nodes.gives_back if job.spec.nodes else 0
    before = sum(bool(a.sick_nodes) for a in job.attempts if a.number <= attempt.number)
    if before <= most:
        return Judgement(Verdict.CONTINUE, f"given back: {attempt.reason}")
    return Judgement(
        Verdict.FAILED,
        f"{attempt.reason}; {before} attempts were given back (nodes.gives_back: {most}): see "
        "whether the check is right, and `autoexp nodes`",
    )


def counts(job: JobRecord, attempt: Attempt) -> bool:
    """True if its end counts: attempts queued ahead end with the one that restarts."""
    return job.restart is None or attempt.number <= job.restart.attempt


def with_scores(job: JobRecord, judgement: Judgement) -> Judgement:
    """Read the scores of a finished job; without them, the job has failed."""
    if job.spec.scores is None or judgement.verdict is not Verdict.FINISHED:
        return judgement
    try:
        scores = read_scores(Path(job.spec.scores))
    except NoScores as error:
        return Judgement(Verdict.FAILED, f"{judgement.reason}, but without scores: {error}")
    job.scores = scores.numbers
    if not scores.not_finite:
        return judgement
    names = ", ".join(scores.not_finite[:_MOST_NAMES])
    return Judgement(judgement.verdict, f"{judgement.reason}; scores that are not finite: {names}")


def with_exception(job: JobRecord, attempt: Attempt, judgement: Judgement) -> Judgement:
    """Add the exception to the reason of a program that failed, where its log has one.

    Of a container that did not start, its runtime's word says more than an exit code.
    """
    by_code = judgement.reason.startswith(_BY_EXIT_CODE)
    in_vain = attempt.state == "FAILED" and judgement.reason.startswith(_RESTARTED)
    if judgement.verdict is not Verdict.FAILED or not (by_code or in_vain):
        return judgement
    log = Path(attempt.log)
    if by_code and not has_begun(job) and attempt.exit_code == DOCKER_NOT_STARTED:
        said = last_of_docker(log) if isinstance(job.spec.container, Docker) else None
        if said is not None:
            return Judgement(judgement.verdict, f"its container did not start: {said}")
    exception = last_exception(log)
    if exception is None:
        return judgement
    by_fatal = attempt.exit_code == NOT_STARTED and exception.startswith(FATAL)
    if by_code and not has_begun(job) and (by_fatal or exception.startswith(CH_RUN)):
        return Judgement(judgement.verdict, f"its container did not start: {exception}")
    trains = job.spec.target_iteration is not None
    where = " before its first iteration" if by_code and trains and not has_begun(job) else ""
    return Judgement(judgement.verdict, f"{judgement.reason}{where}: {exception}")


def has_begun(job: JobRecord) -> bool:
    """True if the job has logged an iteration or saved a checkpoint, in any attempt."""
    return job.iteration is not None or bool(job.checkpoints)


def start_exception(has_begun: bool, log: str | None) -> str | None:
    """The exception at the end of a job's log, where it died before its first iteration."""
    return None if has_begun or log is None else last_exception(Path(log))


def made_progress(job: JobRecord, attempt: Attempt) -> bool:
    """True if the attempt saved a new checkpoint: progress that is only logged is lost."""
    return job.saved_iteration > (attempt.first_iteration or 0)


def _reached(job: JobRecord) -> int:
    return max(job.iteration or 0, job.saved_iteration)


def _unsaved(job: JobRecord, target: int) -> str:
    newest = f"its newest is {job.saved_iteration}" if job.saved_iteration else "it has none"
    return (
        f"the log comes to iteration {_reached(job)}, and {job.spec.save_dir} has no checkpoint of "
        f"{target} ({newest})"
    )


def _how_it_ended(job: JobRecord, attempt: Attempt, facts: StateFacts) -> str:
    """Describe the end: `FAILED (exit code 1)`, `CANCELLED by ann (by someone else)`."""
    if attempt.warned and (attempt.reason == ENDED_ON_WARNING or attempt.state == "FAILED"):
        return _on_warning(job, attempt)
    state, details = attempt.state, []
    if attempt.exit_code is not None:
        details.append(f"exit code {attempt.exit_code}")
    if attempt.signal:
        details.append(f"signal {attempt.signal}")
    cancelled = facts.fault is Fault.CANCELLED
    if cancelled and (attempt.reason or "").startswith("by "):
        state = f"{state} {attempt.reason}"  # as accounting has it, by name
    elif attempt.reason:
        details.append(attempt.reason)
    if cancelled:
        details.append("by someone else")
    return f"{state} ({', '.join(details)})" if details else state


def _on_warning(job: JobRecord, attempt: Attempt) -> str:
    """Describe the end of a command that had been warned to save, and ended before its limit."""
    early = f"ended on the warning {job.spec.machine.warn_before_limit_s} s before the limit"
    if made_progress(job, attempt):
        return early
    return f"{early} without a new checkpoint; it does not save on SIGTERM: see {_ON_SAVING}"
