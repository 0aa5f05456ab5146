"""Compares where an attempt began with where it had to begin.

A trainer that does not load its checkpoint trains all the same, and its losses look plausible.
So the first lines and checkpoints of an attempt are compared with the checkpoint to resume from.
"""

from collections.abc import Iterable
from pathlib import Path

from autoexp.backends.protocol import UNDECIDED, FoundCheckpoint
from autoexp.jobs.record import Attempt, JobRecord
from autoexp.model import now

_NAMED = 3


def note_line(job: JobRecord, attempt: Attempt, line: bytes) -> bool:
    """Record what a log line says of the start; True if that is new."""
    if attempt.first_logged or attempt.started_from not in (None, UNDECIDED):
        return False  # what comes later is about something else: a script may train twice
    found = job.spec.trainer.read_start(line, attempt.started_from)
    if found is None or found == attempt.started_from:
        return False
    attempt.started_from = found
    return True


def note_logged(job: JobRecord, attempt: Attempt, iteration: int) -> None:
    """Record an iteration of the attempt's log, before the job's own is advanced."""
    first = attempt.first_logged
    _confirm_fall(job, attempt, iteration)
    if not first or (len(first) == 1 and iteration != first[0]):
        attempt.first_logged = (*first, iteration)
    if first and job.iteration is not None and iteration <= job.iteration:
        _note_fall(job, attempt, iteration)


def note_time(attempt: Attempt) -> None:
    """Record that iterations were read now: once for all lines of a look."""
    attempt.last_logged_at = now()
    if attempt.first_logged_at is None:
        attempt.first_logged_at = attempt.last_logged_at


def check(job: JobRecord, attempt: Attempt, *, is_read: bool = False) -> None:
    """Compare what was logged with where the attempt had to begin, and fail it for another place.

    One line alone is no evidence, since it may be garbled. With `is_read` no more lines will come:
    a job must not count as finished if what there is of its log shows another start.

    Raises OSError when it cannot be seen which checkpoints lie there.
    """
    if attempt.wrong_start is not None:
        return
    _check_beginning(job, attempt, alone=is_read and attempt.state == "COMPLETED")
    if attempt.fell_back is not None and attempt.wrong_start is None:
        iteration, required = attempt.fell_back
        if _is_excused(job, iteration - 1, required):
            attempt.fell_back = None
        else:
            _fail_start(job, attempt, f"its log goes back to iteration {iteration}", required)


def note_saved(job: JobRecord, attempt: Attempt, complete: Iterable[FoundCheckpoint]) -> None:
    """Record the checkpoints in the save directory while an attempt runs, or ran."""
    branch = job.spec.branch
    early = [found.iteration for found in complete if branch and found.iteration < branch.iteration]
    if early and _required(job, attempt) is not None:
        _fail_start(job, attempt, f"it has saved a checkpoint at iteration {min(early)}")


def note_pinned(job: JobRecord, attempt: Attempt) -> None:
    """Compare a branch's start and its parent's checkpoint with what they were when pinned."""
    branch = job.spec.branch
    if branch is None:
        return
    changes = job.spec.trainer.pin_changes(Path(job.spec.save_dir))
    if changes.seed and not start_was_seen(job, attempt) and _required(job, attempt) is not None:
        what = _few(changes.seed)
        evidence = f"it has overwritten the checkpoint that it had to resume from: {what}"
        _fail_start(job, attempt, evidence)
    if changes.origin and job.tainted is None:
        job.tainted = (
            f"branched from {changes.path}, in which files have been changed since: "
            f"{_few(changes.origin)}"
        )


def earliest_of_next(job: JobRecord, attempt: Attempt) -> int:
    """The earliest iteration that an attempt queued behind this one may begin from.

    It may have run unseen for hours, and what was found meanwhile may be its own.
    """
    return min(job.saved_iteration, max(_lowest(attempt), attempt.saved or 0))


def start_was_seen(job: JobRecord, attempt: Attempt) -> bool:
    """True if the attempt is known to have begun where it had to."""
    required = _required(job, attempt)
    if required is None or attempt.wrong_start is not None:
        return False
    if attempt.started_from is not None and attempt.started_from != UNDECIDED:
        return True  # it would have been blamed for another
    return _is_behind(job, attempt, required)


def count_repeat(job: JobRecord, attempt: Attempt, rule: str) -> int:
    """Count a line that tells of a restart within the attempt, since the job has come furthest."""
    reached = max(job.iteration or 0, job.saved_iteration)
    count, furthest = attempt.repeats.get(rule, (0, reached))
    if reached > furthest:
        count, furthest = 0, reached
    attempt.repeats[rule] = (count + 1, furthest)
    return count + 1


def branch_was_seen(job: JobRecord) -> bool:
    """True if a branch is known to have begun at its branch point, so that its losses count."""
    # The checkpoints of a wrong one were set aside before the next one began.
    right = (attempt for attempt in job.attempts if attempt.wrong_start is None)
    began = [a for a in right if a.first_logged or a.started_from is not None]
    return bool(began) and not ended_wrongly(job) and start_was_seen(job, began[0])


def ended_wrongly(job: JobRecord) -> bool:
    """True if the deciding attempt did not begin where it had to: its losses mean nothing."""
    return job.attempt is not None and job.attempt.wrong_start is not None


def _is_behind(job: JobRecord, attempt: Attempt, required: int) -> bool:
    """True if the first log lines are those of a training that began there, and of no other."""
    first, interval = attempt.first_logged, _interval(job, attempt)
    if not first or interval is None:
        return False
    # A training that begins at 0 logs its first line within one interval.
    return required <= first[0] <= required + interval and first[0] > interval


def _interval(job: JobRecord, attempt: Attempt) -> int | None:
    """Iterations between two lines of the log: a trainer may log less often than configured."""
    first = attempt.first_logged
    seen = first[1] - first[0] if len(first) > 1 else 0
    return max(seen, job.spec.trainer.log_interval or 0) or None


def _required(job: JobRecord, attempt: Attempt) -> int | None:
    """The iteration to begin from; None where there is no checkpoint, or it is unknown."""
    return (attempt.first_iteration or None) if _trains(job) else None


def _trains(job: JobRecord) -> bool:
    return job.spec.kind.trains and job.spec.target_iteration is not None


def _lowest(attempt: Attempt) -> int:
    highest = attempt.first_iteration or 0
    return highest if attempt.earliest_start is None else min(highest, attempt.earliest_start)


def _check_beginning(job: JobRecord, attempt: Attempt, *, alone: bool) -> None:
    required = _required(job, attempt)
    if required is None:
        return
    lowest, fresh = _lowest(attempt), _is_fresh_branch(job, attempt)
    stated = attempt.started_from
    if stated is not None and stated != UNDECIDED:
        too_low = stated < lowest and not _excuse(job, attempt, stated, required)
        if too_low or (fresh and stated > required):
            _fail_start(job, attempt, f"its trainer says that it begins at iteration {stated}")
        return
    first, interval = attempt.first_logged, job.spec.trainer.log_interval
    if not first or (len(first) == 1 and not alone):
        return
    logged, second = first[0], first[-1]
    follows = second > logged and second - logged == interval

    def is_too_low(iteration: int) -> bool:
        return iteration < lowest or (iteration == lowest and job.spec.trainer.LOGS_DONE)

    # A line may be lost between others, and so one interval more is no evidence.
    usual = _interval(job, attempt)
    most = None if usual is None else required + 2 * usual
    too_high = fresh and most is not None and min(logged, second) > most
    too_low = is_too_low(logged) and (follows or is_too_low(second))
    if too_high or (too_low and not _excuse(job, attempt, logged - 1, required)):
        _fail_start(job, attempt, f"its log begins with iteration {logged}")


def _confirm_fall(job: JobRecord, attempt: Attempt, iteration: int) -> None:
    """Confirm that the log went back once the next line continues from there."""
    seen = attempt.may_have_fallen_back
    if seen is None or iteration == seen[0]:
        return  # the same line again tells nothing
    attempt.may_have_fallen_back = None
    if iteration > seen[0] and (
        iteration <= seen[1] or iteration - seen[0] == job.spec.trainer.log_interval
    ):
        attempt.fell_back = seen


def _note_fall(job: JobRecord, attempt: Attempt, iteration: int) -> None:
    """Record that the log goes back: the attempt restarted, as after a requeue.

    What it logged a whole save interval beyond lies on disk; a later save may have been torn.
    """
    trainer, target = job.spec.trainer, job.spec.target_iteration or 0
    reached = min(job.iteration or 0, target)  # not what a garbled line says
    known = trainer.LOGS_DONE and _trains(job) and attempt.first_iteration is not None
    if not known or attempt.fell_back is not None:
        return
    sure = [at for at in job.checkpoints if at <= reached - trainer.save_interval]
    required = max([_lowest(attempt), *sure])
    if iteration <= required:
        attempt.may_have_fallen_back = (iteration, required)


def _is_fresh_branch(job: JobRecord, attempt: Attempt) -> bool:
    """True if a branch has nothing but its seed: later ones may go on from unseen checkpoints."""
    branch = job.spec.branch
    only = branch is not None and attempt.first_iteration == branch.iteration
    return only and job.attempts[:1] == [attempt]


def _excuse(job: JobRecord, attempt: Attempt, began_at: int, required: int) -> bool:
    """True if it is excused; this is not checked again then."""
    excused = _is_excused(job, began_at, required)
    if excused:
        attempt.earliest_start = began_at
    return excused


def _is_excused(job: JobRecord, began_at: int, required: int) -> bool:
    """True if the checkpoint was removed, and the attempt resumed from the newest one left."""
    there = job.spec.trainer.checkpoints(Path(job.spec.save_dir)).complete
    left = max((found.iteration for found in there if found.iteration <= required), default=None)
    if left is None:
        return not there and job.spec.branch is None
    return left < required and left <= began_at


def _fail_start(
    job: JobRecord, attempt: Attempt, evidence: str, required: int | None = None
) -> None:
    if attempt.wrong_start is not None:
        return
    at = attempt.first_iteration if required is None else required
    branch = job.spec.branch
    place = "branch point" if branch and at == branch.iteration else "last checkpoint"
    attempt.wrong_start = (
        f"did not begin at its {place}, iteration {at}: {evidence}. "
        f"Have the trainer resume from {job.spec.save_dir}"
    )


def _few(names: Iterable[str]) -> str:
    shown = sorted(names)
    more = f" and {len(shown) - _NAMED} more" if len(shown) > _NAMED else ""
    return ", ".join(shown[:_NAMED]) + more
