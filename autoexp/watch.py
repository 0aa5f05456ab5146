"""What the monitor remembers of one job between two looks, and how it reads what is new."""

import time
from collections.abc import Iterator
from pathlib import Path

from autoexp.backends.base import Progress
from autoexp.events import CheckpointComplete, Event, LogLost
from autoexp.jobs import Attempt, JobRecord
from autoexp.logtail import LogLine, read_new

# A folder changed this recently may change again within the clock's grain: look once more.
_RACY_NS = 2_000_000_000

Stamp = tuple[int, int, int] | None


class JobWatch:
    """Reads a job's log and checkpoint folder; holds nothing that has to survive."""

    def __init__(self) -> None:
        self.rows: list[str] = []
        """Metrics that are not on disk yet."""
        self.dirty = False
        """Whether the record has moved since it was saved."""
        self.saved_at = 0.0
        self._stamps: list[Stamp] = []
        self._racy = True
        self._unreadable = False

    def saved(self) -> None:
        """Note that the record is on disk."""
        self.rows, self.dirty, self.saved_at = [], False, time.monotonic()

    def cannot_read(self, job: JobRecord, error: OSError) -> None:
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

    def read_log(self, job: JobRecord, attempt: Attempt, *, final: bool) -> Iterator[Event]:
        """Take in the new lines of the attempt's log; `final` when it has ended.

        Yields what happened as it is found, so that a read that fails later loses nothing.
        """
        more = True
        while more:
            reading = read_new(Path(attempt.log), job.cursor, final=final)
            if reading.cursor != job.cursor:
                job.cursor = reading.cursor
                self.dirty = True
            for line in reading.lines:
                self._take_in(job, line)
            if reading.lost:
                yield LogLost(
                    job=job.spec.name,
                    attempt=attempt.number,
                    generation=job.cursor.generation,
                    message=reading.lost,
                )
            more = reading.more

    def _take_in(self, job: JobRecord, line: LogLine) -> None:
        progress = job.spec.trainer.progress(line.text)
        if progress is not None:
            self._note(job, progress)

    def _note(self, job: JobRecord, progress: Progress) -> None:
        self.dirty = True
        job.iteration = progress.iteration
        job.loss = progress.loss
        job.learning_rate = progress.learning_rate
        job.seconds_per_iteration = progress.seconds_per_iteration
        job.mean_seconds_per_iteration = _mean(
            job.mean_seconds_per_iteration, progress.seconds_per_iteration
        )
        self.rows.append(_row(progress))

    def find_checkpoints(self, job: JobRecord, *, ended: bool) -> list[Event]:
        """Checkpoints that have become complete; a stat or two while nothing moves."""
        trainer, save_dir = job.spec.trainer, Path(job.spec.save_dir)
        stamps = [_stamp(path) for path in trainer.watched(save_dir)]
        if stamps == self._stamps and not self._racy and not ended:
            return []
        now = time.time_ns()
        scan = trainer.checkpoints(save_dir)
        fresh = any(stamp is not None and now - stamp[2] < _RACY_NS for stamp in stamps)
        # Only now: a scan that fails is repeated at the next look.
        self._stamps, self._racy = stamps, fresh or scan.unfinished
        start = job.spec.branch.iteration if job.spec.branch else 0
        known = set(job.checkpoints)
        new = [
            found
            for found in scan.complete
            # A branch's own start was seeded; it is the parent's checkpoint, not the branch's.
            if found.iteration > start and found.iteration not in known
        ]
        job.checkpoints += [found.iteration for found in new]
        for progress in scan.progress:
            # A checkpoint tells the whole story, a branch's its parent's too.
            if progress.iteration > max(start, job.iteration or 0):
                self._note(job, progress)
        return [
            CheckpointComplete(job=job.spec.name, iteration=found.iteration, path=str(found.path))
            for found in new
        ]


def _mean(mean: float | None, seconds: float | None) -> float | None:
    if mean is None or seconds is None:
        return mean if seconds is None else seconds
    return 0.9 * mean + 0.1 * seconds


def _stamp(path: Path) -> Stamp:
    try:
        stat = path.stat()
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
