"""What the monitor remembers of one job between two looks, and how it reads what is new."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from autoexp import states
from autoexp.backends.base import Progress
from autoexp.events import CheckpointComplete, Event
from autoexp.findings import LoggingStopped, LogLost, LogMatched, MetricAlarm
from autoexp.jobs import Attempt, JobRecord, JobSpec, Logged
from autoexp.loglines import LogLine
from autoexp.logtail import LogCursor, read_new
from autoexp.rules.book import Watched
from autoexp.rules.matching import Hit
from autoexp.rules.metrics import Expectation, alarm, clean
from autoexp.rules.values import typed

# A folder changed this recently may change again within the clock's grain: look once more.
_RACY_NS = 2_000_000_000
# The longest time between two looks that counts as time in which a job was watched.
_LONGEST_LOOK_S = 60.0
_SHOWN = 1000  # bytes of a line that an event keeps

Stamp = tuple[int, int, int] | None


class JobWatch:
    """Reads a job's log and checkpoint folder; holds nothing that has to survive."""

    def __init__(self) -> None:
        self.rows: list[str] = []
        """Metrics that are not on disk yet."""
        self.dirty = False
        """Whether the record has moved since it was saved."""
        self.saved_at = 0.0
        self._watched_of: JobSpec | None = None
        self._watched: tuple[str, ...] = ()
        self._stamps: list[Stamp] = []
        self._racy = True
        self._unreadable = False
        self._quiet_s = 0.0
        self._quiet_at: tuple[int, int, int] | None = None
        self._stopped: set[str] = set()
        self._looked_at: float | None = None

    def saved(self) -> None:
        """Note that the record is on disk."""
        self.rows, self.dirty, self.saved_at = [], False, time.monotonic()

    def cannot_read(self, job: JobRecord, error: Exception) -> None:
        """Say in the record why nothing new is known of the job."""
        self._tell(job, f"cannot be read: {error}; trying on")
        self._unreadable = True

    def can_read(self, job: JobRecord) -> None:
        """Take back what `cannot_read` said."""
        if self._unreadable:
            self._tell(job, None)
            self._unreadable = False

    def _tell(self, job: JobRecord, warning: str | None) -> None:
        self.dirty |= job.warning != warning
        job.warning = warning

    def read_log(
        self, job: JobRecord, attempt: Attempt, watched: Watched, *, final: bool
    ) -> Iterator[Event]:
        """Take in the new lines of the attempt's log; `final` when it has ended.

        Yields what happened as it is found, so that a read that fails later loses nothing.
        """
        if _has_nothing_new(attempt.log, job.cursor, final=final):
            return
        more = True
        while more:
            reading = read_new(Path(attempt.log), job.cursor, final=final)
            if reading.cursor != job.cursor:
                job.cursor = reading.cursor
                self.dirty = True
            for piece in reading.pieces:
                for line, hits in watched.lines.search(piece, job.spec.trainer.PROGRESS_MARK):
                    for hit in hits:
                        yield from self._note(job, attempt, watched, hit)
                    yield from self._take_in(job, attempt, watched, line)
            if reading.lost:
                yield LogLost(
                    job=job.spec.name,
                    attempt=attempt.number,
                    generation=job.cursor.generation,
                    message=reading.lost,
                )
            more = reading.more

    def _note(
        self, job: JobRecord, attempt: Attempt, watched: Watched, hit: Hit
    ) -> Iterator[LogMatched]:
        """Count a line that a rule wants; the first of an attempt is an event."""
        seen = attempt.matches.get(hit.name, 0)
        attempt.matches[hit.name] = seen + 1
        self.dirty = True
        rule = watched.log_rules[hit.name]
        if seen == 0 or rule.every:
            yield LogMatched(
                job=job.spec.name,
                attempt=attempt.number,
                rule=hit.name,
                severity=rule.severity,
                iteration=job.iteration,
                generation=hit.line.generation,
                offset=hit.line.offset,
                line=_text(hit.line.text[:_SHOWN]),
                values={name: typed(_text(value)) for name, value in hit.groups.items()},
                every=rule.every,
            )

    def _take_in(
        self, job: JobRecord, attempt: Attempt, watched: Watched, line: LogLine
    ) -> Iterator[MetricAlarm]:
        progress = job.spec.trainer.progress(line.text)
        if progress is not None:
            yield from self._move_on(job, attempt, watched, progress)

    def _move_on(
        self, job: JobRecord, attempt: Attempt, watched: Watched, progress: Progress
    ) -> Iterator[MetricAlarm]:
        self.dirty = True
        job.iteration = progress.iteration
        job.loss = progress.loss
        job.logs_loss |= progress.loss is not None
        job.learning_rate = progress.learning_rate
        job.seconds_per_iteration = progress.seconds_per_iteration
        job.mean_seconds_per_iteration = _mean(
            job.mean_seconds_per_iteration, progress.seconds_per_iteration
        )
        self.rows.append(_row(progress))
        if watched.metric_rules:
            _remember(job, progress, watched.window)
            yield from _alarms(job, attempt, watched)

    def stands_still(
        self, job: JobRecord, attempt: Attempt, watched: Watched
    ) -> Iterator[LoggingStopped]:
        """Count the time in which a running job writes nothing; only watched time counts."""
        now = time.monotonic()
        passed = 0.0 if self._looked_at is None else min(_LONGEST_LOOK_S, now - self._looked_at)
        self._looked_at = now
        place = (job.cursor.generation, job.cursor.scanned, len(job.checkpoints))
        if place != self._quiet_at or not states.is_running(attempt.state):
            self._quiet_at, self._quiet_s = place, 0.0
            self._stopped.clear()
            return
        self._quiet_s += passed
        for name, rule in watched.inactivity_rules.items():
            if self._quiet_s >= rule.after and name not in self._stopped:
                self._stopped.add(name)
                yield LoggingStopped(
                    job=job.spec.name,
                    attempt=attempt.number,
                    rule=name,
                    generation=job.cursor.generation,
                    offset=job.cursor.scanned,
                    quiet_s=round(self._quiet_s, 1),
                )

    def _watched_paths(self, spec: JobSpec) -> tuple[str, ...]:
        if self._watched_of is not spec:
            # Made once: making a path takes longer than asking the filesystem about it.
            self._watched_of = spec
            self._watched = tuple(map(str, spec.trainer.watched(Path(spec.save_dir))))
        return self._watched

    def find_checkpoints(
        self, job: JobRecord, attempt: Attempt, watched: Watched, *, ended: bool
    ) -> list[Event]:
        """Checkpoints that have become complete; a stat or two while nothing moves."""
        stamps = [_stamp(path) for path in self._watched_paths(job.spec)]
        if stamps == self._stamps and not self._racy and not ended:
            return []
        trainer, save_dir = job.spec.trainer, Path(job.spec.save_dir)
        now = time.time_ns()
        scan = trainer.checkpoints(save_dir)
        fresh = any(stamp is not None and now - stamp[2] < _RACY_NS for stamp in stamps)
        # Only now: a scan that fails is repeated at the next look.
        self._stamps, self._racy = stamps, fresh or scan.unfinished
        start = job.spec.branch.iteration if job.spec.branch else 0
        known = set(job.checkpoints)
        back = None if job.restart is None else job.restart.roll_back_to
        new = [
            found
            for found in scan.complete
            # A branch's own start was seeded; it is the parent's checkpoint, not the branch's.
            if found.iteration > start
            and found.iteration not in known
            # What an attempt that is to be rolled back still saves is set aside with the rest.
            and (back is None or found.iteration <= back)
        ]
        job.checkpoints += [found.iteration for found in new]
        events: list[Event] = []
        for progress in scan.progress:
            # A checkpoint tells the whole story, a branch's its parent's too.
            if progress.iteration > max(start, job.iteration or 0):
                events += self._move_on(job, attempt, watched, progress)
        return events + [
            CheckpointComplete(
                job=job.spec.name,
                iteration=found.iteration,
                path=str(found.path),
                generation=job.generation(found.iteration),
                last=found.iteration == job.spec.target_iteration,
            )
            for found in new
        ]


def _has_nothing_new(log: str, cursor: LogCursor, *, final: bool) -> bool:
    """Whether a stat is enough to know that the log says no more than it did."""
    try:
        return cursor.stands_at_end_of(os.stat(log), final=final)  # noqa: PTH116
    except FileNotFoundError:
        return False


def _remember(job: JobRecord, progress: Progress, window: int) -> None:
    """Keep the last logged iterations; a trainer that began again begins a new tail."""
    if job.tail and progress.iteration <= job.tail[-1].iteration:
        job.tail = []
    loss = clean(progress.loss)
    row = Logged(progress.iteration, loss, progress.learning_rate, progress.seconds_per_iteration)
    job.tail = [*job.tail, row][-window:]


def _alarms(job: JobRecord, attempt: Attempt, watched: Watched) -> Iterator[MetricAlarm]:
    branch, trainer = job.spec.branch, job.spec.trainer
    known = Expectation(
        logs_loss=job.logs_loss,
        planned_rate=lambda at: None if branch is None else trainer.planned_rate(branch, at),
        peak_rate=None if branch is None else trainer.planned_rate(branch, branch.iteration),
    )
    for name, rule in watched.metric_rules.items():
        found = None if name in attempt.matches else alarm(rule, job.tail, known)
        if found is not None:
            attempt.matches[name] = 1
            yield MetricAlarm(
                job=job.spec.name,
                attempt=attempt.number,
                rule=name,
                iteration=job.tail[-1].iteration,
                value=found.value,
                expected=found.expected,
                last_good=found.last_good,
                message=found.message,
            )


def _text(raw: bytes) -> str:
    """What is not UTF-8 is shown as it is written in a program: records are text."""
    return raw.decode(errors="backslashreplace")


def _mean(mean: float | None, seconds: float | None) -> float | None:
    if mean is None or seconds is None:
        return mean if seconds is None else seconds
    return 0.9 * mean + 0.1 * seconds


def _stamp(path: str) -> Stamp:
    try:
        stat = os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        return None
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns)


def _row(progress: Progress) -> str:
    """A line of the metrics file: iteration, loss, learning rate, seconds per iteration."""
    cells = (
        progress.iteration,
        progress.loss,
        progress.learning_rate,
        progress.seconds_per_iteration,
    )
    return ",".join("" if cell is None else repr(cell) for cell in cells) + "\n"
