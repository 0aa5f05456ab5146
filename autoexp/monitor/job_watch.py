"""The monitor's memory of one job between two looks, and its reading of new data."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from math import inf, isfinite
from pathlib import Path
from time import perf_counter

from autoexp import states
from autoexp.backends.protocol import Progress, Unread, Validation
from autoexp.jobs import starts
from autoexp.jobs.record import Attempt, JobRecord
from autoexp.jobs.spec import JobSpec
from autoexp.logs.lines import LogLine, Piece
from autoexp.logs.matcher import Hit
from autoexp.logs.numbers import MOST_ITERATIONS
from autoexp.logs.tail import BLOCK, LIMIT, LogCursor, LookBudget, read_new
from autoexp.monitor.decide import Watched
from autoexp.monitor.line_events import (
    QuietTimes,
    RatesBeside,
    SilentLines,
    add_alarms,
    add_validation_alarms,
    in_words,
    log_matched,
    metrics_row,
    place_of,
    printable,
)
from autoexp.rules.describe import NO_PROGRESS, missing_progress
from autoexp.rules.events import (
    CheckpointComplete,
    Event,
    LoggingStopped,
    LogLost,
    LogMatched,
    ProgressMissing,
)
from autoexp.rules.metrics import _SHOWN, Logged, smoothed, with_logged
from autoexp.rules.rules import LogRule
from autoexp.storage import metrics_file


def as_logged(progress: Progress) -> Logged:
    """A progress line as it is recorded: a number that is not finite becomes None.

    Raises ValueError for a step number that no training has.
    """
    iteration, loss, rate = progress.iteration, progress.loss, progress.learning_rate
    seconds = progress.seconds_per_iteration
    more = (progress.grad_norm, progress.tokens_per_s, progress.tflops, progress.mfu)
    if not 0 <= iteration < MOST_ITERATIONS:
        raise ValueError(f"iteration {str(iteration)[:_SHOWN]} is not a step number")
    return Logged(
        iteration,
        loss if loss is None or isfinite(loss) else None,
        rate if rate is None or isfinite(rate) else None,
        seconds if seconds is None or isfinite(seconds) else None,
        *[number if number is None or isfinite(number) else None for number in more],
    )


# A folder changed this recently may change again within the clock's grain: look once more.
_RACY_NS = 2_000_000_000
# The longest time between two looks that counts as time in which a job was watched.
_LONGEST_LOOK_S = 60.0
EVENTS = 1000  # that a look finds at most, about, where the lines are events
MOST_AT_END = 40.0  # looks' worth of an ended job's log, before its end alone is read
SILENCE_S, STEADY_S = 30.0, 120.0
"""When a log counts as silent, and for how long it has to grow until it is known to be alive."""
_NEAR_END_S = 120.0
"""The last part of a job, in which the scheduler is asked often: what follows waits for its end."""
MOST_AT_END_S = 20.0  # for which an ended job's log is read, before its end alone is
END = 1 << 20  # bytes of a log that are its end
_VALIDATIONS = 20  # that rules look back at
_LIMIT_OF_EVENTS = BLOCK >> 4  # bytes of one call where every line may be an event

Stamp = tuple[int, int, int] | None


class JobWatch:
    """Reads a job's log and checkpoint folder; holds nothing that has to survive a restart."""

    def __init__(self) -> None:
        self.rows: list[str] = []
        """Metrics that are not on disk yet."""
        self.dirty = False
        """True if the record has changed since it was saved."""
        self.saved_at = 0.0
        self.at_end = True
        """True if the last look read the log to its end; else the next one goes on from there."""
        self.log: str | None = None
        """The log that the last look has read; None: it looked at nothing of this job."""
        self._watched_of: JobSpec | None = None
        self._watched: tuple[str, ...] = ()
        self._stamps: list[Stamp] = []
        self._racy = True
        self._unreadable: str | None = None
        self._passed_by: set[str] = set()
        self._row_of: int | None = None
        self._silent_lines = SilentLines()
        self._has_advanced = False
        self._quiet = QuietTimes()
        self._looked_at: float | None = None
        self._moved_at = self._moving_since = -inf
        self._start_known: tuple[object, ...] = ()
        self._rates = RatesBeside()
        self._read_at_end = 0.0  # looks' worth
        self._read_at_end_s = 0.0

    def check_start(self, job: JobRecord, attempt: Attempt, *, ended: bool) -> None:
        """Compare where an attempt began with where it had to, whenever more is known of it."""
        is_read = ended and self.at_end
        known = (
            attempt.number,
            attempt.first_iteration,
            attempt.first_logged,
            attempt.started_from,
            attempt.fell_back,
            attempt.state,
            is_read,
        )
        if known != self._start_known:
            starts.check(job, attempt, is_read=is_read)
            self._start_known = known

    def saved(self) -> None:
        """Record that the job's record is on disk."""
        self.rows, self.dirty, self.saved_at = [], False, time.monotonic()
        self._row_of = None

    def warn_unreadable(self, job: JobRecord, error: Exception) -> None:
        """Record why nothing new is known of the job."""
        self._unreadable = f"cannot read log or checkpoints: {error}; retrying"
        self._set_warning(job, self._unreadable)

    def clear_unreadable(self, job: JobRecord) -> None:
        """Clear the warning of `warn_unreadable`."""
        if self._unreadable is not None and job.warning == self._unreadable:
            self._set_warning(job, None)
        self._unreadable = None

    def warn_skipped(self, job: JobRecord, place: str, error: Exception | str) -> None:
        """Record a warning for what could not be read and was skipped, once for each kind."""
        what = error if isinstance(error, str) else in_words(error)
        kind = f"{what.split()[0]} {type(error)}"
        self._warn_once(job, kind, f"{place}: {what}; skipped")

    def _warn_once(self, job: JobRecord, kind: str, warning: str) -> None:
        if kind not in self._passed_by:
            self._passed_by.add(kind)
            self._set_warning(job, warning)

    def _set_warning(self, job: JobRecord, warning: str | None) -> None:
        self.dirty |= job.warning != warning
        job.warning = warning

    def read_log(
        self,
        job: JobRecord,
        attempt: Attempt,
        watched: Watched,
        budget: LookBudget,
        *,
        final: bool,
    ) -> Iterator[Event]:
        """Process new lines of the attempt's log, for a turn; `final` when it has ended.

        Yields what happened as it is found, so that a read that fails later loses nothing. Raises
        OSError alone: a line that cannot be handled is skipped, with a warning.
        """
        self.at_end = False
        if _has_nothing_new(attempt.log, job.cursor, final=final):
            self.at_end = True
            return
        # Where lines are so short, or so full of finds, that it takes too long: the end alone.
        # A look's worth of short lines takes seconds where many share a core.
        is_enough = self._read_at_end > MOST_AT_END or self._read_at_end_s > MOST_AT_END_S
        behind = END if final and is_enough else None
        before, began_s = budget.left, perf_counter()
        most = _LIMIT_OF_EVENTS if any(r.every for r in watched.log_rules.values()) else LIMIT
        while not self.at_end and (limit := budget.limit(most)):
            reading = read_new(
                Path(attempt.log), job.cursor, final=final, limit=limit, most_behind=behind
            )
            budget.spend(reading.share)
            if reading.cursor != job.cursor:
                job.cursor = reading.cursor
                self.dirty = True
                self._note_movement()
            for piece in reading.pieces:
                if job.iteration is None:
                    self._silent_lines.add(attempt, piece)
                for event in self._read_piece(job, attempt, watched, piece):
                    budget.spend(1 / EVENTS)
                    yield event
            if reading.skipped:
                self._set_warning(job, printable(reading.lost or ""))
            if reading.lost:
                yield LogLost(
                    job=job.spec.name,
                    attempt=attempt.number,
                    generation=job.cursor.generation,
                    message=printable(reading.lost),
                    skipped=reading.skipped,
                )
            self.at_end = not reading.more
        if self._has_advanced:
            self._has_advanced = False
            starts.note_time(attempt)
            try:
                yield from self._rates.alarms(job, attempt, watched)
            except Exception as error:
                self.warn_skipped(job, job.spec.save_dir, error)
        yield from self.find_silence(job, attempt)
        if final:
            self._read_at_end += before - budget.left
            self._read_at_end_s += perf_counter() - began_s
        else:
            self._read_at_end = self._read_at_end_s = 0.0

    def _read_piece(
        self, job: JobRecord, attempt: Attempt, watched: Watched, piece: Piece
    ) -> Iterator[Event]:
        line = piece.line(0, 0)
        try:
            mark = job.spec.trainer.PROGRESS_MARK
            for line, is_suspect, is_marked in watched.lines.candidates(piece, mark):
                if is_suspect:
                    yield from self._match(job, attempt, watched, line)
                if is_marked:
                    yield from self._apply_progress(job, attempt, watched, line)
        except Exception as error:
            self.warn_skipped(job, place_of(attempt, line), error)

    def _match(
        self, job: JobRecord, attempt: Attempt, watched: Watched, line: LogLine
    ) -> list[LogMatched]:
        """Count the rules' matches in a line; the first match of an attempt is an event."""
        events: list[LogMatched] = []
        try:
            for hit in watched.lines.hits(line):
                events += self._note(job, attempt, watched.log_rules[hit.name], hit)
        except Exception as error:
            self.warn_skipped(job, place_of(attempt, line), error)
        return events

    def _note(
        self, job: JobRecord, attempt: Attempt, rule: LogRule, hit: Hit
    ) -> Iterator[LogMatched]:
        seen = attempt.matches.get(hit.name, 0)
        attempt.matches[hit.name] = seen + 1
        self.dirty = True
        if rule.times > 1:
            is_due = starts.count_repeat(job, attempt, hit.name) == rule.times
        else:
            is_due = seen == 0 or rule.every
        if is_due:
            yield log_matched(job, attempt, rule, hit)

    def _apply_progress(
        self, job: JobRecord, attempt: Attempt, watched: Watched, line: LogLine
    ) -> list[Event]:
        """Update the record from a progress line."""
        alarms: list[Event] = []
        try:
            self.dirty |= starts.note_line(job, attempt, line.text)
            progress = job.spec.trainer.progress(line.text)
            if isinstance(progress, Unread):
                self.warn_skipped(
                    job, place_of(attempt, line), f"{progress.what} is not a step number"
                )
            elif progress is not None:
                if progress.unread is not None:
                    self.warn_skipped(
                        job, place_of(attempt, line), f"{progress.unread} is not a number"
                    )
                starts.note_logged(job, attempt, progress.iteration)
                self._advance(job, attempt, watched, progress, alarms)
            elif (validation := job.spec.trainer.validation(line.text)) is not None:
                self._note_validation(job, attempt, watched, validation, alarms)
        except Exception as error:
            self.warn_skipped(job, place_of(attempt, line), error)
        return alarms

    def _advance(
        self,
        job: JobRecord,
        attempt: Attempt,
        watched: Watched,
        progress: Progress,
        events: list[Event],
    ) -> None:
        logged = as_logged(progress)
        self.dirty = self._has_advanced = True
        if job.iteration is None and (job.warning or "").startswith(NO_PROGRESS):
            job.warning = None
        job.iteration = logged.iteration
        job.loss = logged.loss
        if logged.loss is not None and not job.logs_loss:
            job.logs_loss = True
        if logged.learning_rate != job.learning_rate:
            job.learning_rate = logged.learning_rate
        job.seconds_per_iteration = logged.seconds
        if logged.grad_norm != job.grad_norm:
            job.grad_norm = logged.grad_norm
        if logged.tokens_per_s != job.tokens_per_s:
            job.tokens_per_s = logged.tokens_per_s
        if logged.tflops != job.tflops:
            job.tflops = logged.tflops
        if logged.mfu != job.mfu:
            job.mfu = logged.mfu
        job.mean_seconds_per_iteration = smoothed(job.mean_seconds_per_iteration, logged.seconds)
        if self.rows and self._row_of == logged.iteration:
            self.rows.pop()  # the same step again, as a progress bar shows it
        self.rows.append(metrics_row(logged))
        self._row_of = logged.iteration
        if watched.metric_rules:
            job.tail = with_logged(job.tail, logged, watched.window)
            add_alarms(job, attempt, watched.metric_rules, events)

    def _note_validation(
        self,
        job: JobRecord,
        attempt: Attempt,
        watched: Watched,
        found: Validation,
        events: list[Event],
    ) -> None:
        self.dirty = True
        point = (found.iteration, found.loss)
        job.validations = {**job.validations, printable(found.name): point}
        job.validation_tail = [*job.validation_tail[1 - _VALIDATIONS :], point]
        self.rows.append(metrics_file.validation_row(*point, printable(found.name)))
        self._row_of = None
        if watched.validation_rules:
            add_validation_alarms(job, attempt, watched.validation_rules, events)

    def _note_movement(self) -> None:
        now = time.monotonic()
        if now - self._moved_at > SILENCE_S:
            self._moving_since = now
        self._moved_at = now

    def moves_steadily(self) -> bool:
        """True if the log has grown for a while, and never stood still for long."""
        now = time.monotonic()
        return now - self._moved_at <= SILENCE_S and now - self._moving_since >= STEADY_S

    def count_quiet_time(
        self, job: JobRecord, attempt: Attempt, watched: Watched
    ) -> Iterator[LoggingStopped]:
        """Count the time in which a running job writes nothing; only watched time counts."""
        now = time.monotonic()
        passed = 0.0 if self._looked_at is None else min(_LONGEST_LOOK_S, now - self._looked_at)
        self._looked_at = now
        if self._quiet.count(job, passed, watched, runs=states.is_running(attempt.state)):
            yield from self._quiet.passed(job, attempt, watched.inactivity_rules)

    def find_silence(self, job: JobRecord, attempt: Attempt) -> Iterator[ProgressMissing]:
        """Report a log of which no line names an iteration, though it has grown."""
        found = self._silent_lines.report(job, attempt, max(job.checkpoints, default=None))
        if found is not None:
            self._set_warning(job, missing_progress(found))
            yield found

    def files(self, spec: JobSpec) -> tuple[str, ...]:
        """What the last look has read: while all of it stays as it is, the next finds nothing."""
        return () if self.log is None else (self.log, *self._watched_paths(spec))

    def rest_s(self, watched: Watched, save_every_s: float) -> float:
        """How long nothing has to be done, counted from a look, while the files stay the same."""
        if not self.at_end or self._racy or self._unreadable is not None:
            return 0.0
        waits = self._quiet.left_s(watched.inactivity_rules)
        if self.dirty:
            waits.append(self.saved_at + save_every_s - time.monotonic())
        return min(waits, default=inf)

    def _watched_paths(self, spec: JobSpec) -> tuple[str, ...]:
        if self._watched_of is not spec:
            # Made once: making a path takes longer than asking the filesystem about it.
            self._watched_of = spec
            self._watched = tuple(map(str, spec.trainer.watched(Path(spec.save_dir))))
        return self._watched

    def find_checkpoints(
        self, job: JobRecord, attempt: Attempt, watched: Watched, *, ended: bool
    ) -> list[Event]:
        """Find checkpoints that have become complete; a stat or two while nothing changes."""
        stamps = [stamp(path) for path in self._watched_paths(job.spec)]
        if stamps == self._stamps and not self._racy and not ended:
            return []
        trainer, save_dir = job.spec.trainer, Path(job.spec.save_dir)
        now = time.time_ns()
        try:
            scan = trainer.checkpoints(save_dir)
        except OSError:
            raise
        except Exception as error:
            # Not again before something changes there.
            self._stamps, self._racy = stamps, False
            self.warn_skipped(job, str(save_dir), error)
            return []
        fresh = any(found is not None and now - found[2] < _RACY_NS for found in stamps)
        # Only now: a scan that fails is repeated at the next look.
        self._stamps, self._racy = stamps, fresh or scan.unfinished
        if scan.problem is not None and (ended or not fresh):
            # Not what is being written at this moment: a file that is written in place is empty.
            self._warn_once(job, scan.problem, scan.problem)
        starts.note_saved(job, attempt, scan.complete)
        if attempt.wrong_start is not None:
            return []  # nothing counts of what it saved
        start = job.spec.branch.iteration if job.spec.branch else 0
        known = {*job.checkpoints, *job.deleted}
        back = None if job.restart is None else job.restart.roll_back_to
        new = [
            found
            for found in scan.complete
            # A branch's own start was seeded; it is the parent's checkpoint, not the branch's.
            if start < found.iteration < MOST_ITERATIONS
            and printable(str(found.path)) == str(found.path)
            and found.iteration not in known
            # Checkpoints saved by an attempt that is to be rolled back are set aside with the rest.
            and (back is None or found.iteration <= back)
        ]
        job.checkpoints += [found.iteration for found in new]
        if new and not ended:
            attempt.saved = max(job.checkpoints)
        events: list[Event] = []
        for progress in scan.progress:
            # A checkpoint holds the whole history, a branch's its parent's too.
            if progress.iteration > max(start, job.iteration or 0):
                self._advance(job, attempt, watched, progress, events)
        seen = max((at for at, _ in job.validations.values()), default=start)
        for validation in scan.validations:
            if validation.iteration > seen:
                self._note_validation(job, attempt, watched, validation, events)
        complete = [
            CheckpointComplete(
                job=job.spec.name,
                iteration=found.iteration,
                path=str(found.path),
                generation=job.generation(found.iteration),
                last=found.iteration == job.spec.target_iteration,
            )
            for found in new
        ]
        return [*events, *complete, *self.find_silence(job, attempt)]


def _has_nothing_new(log: str, cursor: LogCursor, *, final: bool) -> bool:
    """True if a stat is enough to know that the log has nothing new."""
    try:
        return cursor.stands_at_end_of(os.stat(log), final=final)  # noqa: PTH116
    except FileNotFoundError:
        return False


def stamp(path: str) -> Stamp:
    """What tells whether a file or folder has changed; None: there is none."""
    try:
        stat = os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        return None
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns)


def are_calm(jobs: Iterable[JobRecord], watches: Mapping[str, JobWatch]) -> bool:
    """True if all attempts are running, and will be for a while, as far as their logs show."""
    return all(_is_calm(job, watches.get(job.spec.name)) for job in jobs if job.open_attempts)


def _is_calm(job: JobRecord, watch: JobWatch | None) -> bool:
    return (
        watch is not None
        and watch.moves_steadily()
        and all(states.is_running(attempt.state) for attempt in job.open_attempts)
        and not job.is_ending
        and _left_s(job) > _NEAR_END_S
    )


def _left_s(job: JobRecord) -> float:
    """Seconds until a job has reached its target, as fast as it is; endless where none is known."""
    target, speed = job.spec.target_iteration, job.mean_seconds_per_iteration
    if target is None or speed is None:
        return inf
    return max(0, target - (job.iteration or 0)) * speed
