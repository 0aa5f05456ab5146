"""Turns log lines, and their absence, into events of their job; all of it is printable."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from autoexp.jobs.record import Attempt, JobRecord
from autoexp.logs.event_files import RateReader
from autoexp.logs.lines import LogLine, Piece
from autoexp.logs.matcher import Hit
from autoexp.monitor.decide import Watched
from autoexp.rules.event_values import typed
from autoexp.rules.events import Event, LoggingStopped, LogMatched, MetricAlarm, ProgressMissing
from autoexp.rules.metrics import Expectation, Logged, alarm, value_of, with_logged
from autoexp.rules.rules import InactivityRule, LogRule, MetricRule
from autoexp.storage import metrics_file

_SHOWN = 1000  # bytes of a line that an event keeps


def log_matched(job: JobRecord, attempt: Attempt, rule: LogRule, hit: Hit) -> LogMatched:
    """A rule's pattern was found in a line."""
    return LogMatched(
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


def add_alarms(
    job: JobRecord, attempt: Attempt, rules: Mapping[str, MetricRule], events: list[Event]
) -> None:
    """Add an event for each metric rule that the job's tail breaks, once in an attempt."""
    _add(job, attempt, rules, job.tail, events)


def add_validation_alarms(
    job: JobRecord, attempt: Attempt, rules: Mapping[str, MetricRule], events: list[Event]
) -> None:
    """The same for the rules about validation losses, of which one was just logged."""
    tail = [Logged(iteration, loss, None, None) for iteration, loss in job.validation_tail]
    _add(job, attempt, rules, tail, events)


def _add(
    job: JobRecord,
    attempt: Attempt,
    rules: Mapping[str, MetricRule],
    tail: Sequence[Logged],
    events: list[Event],
) -> None:
    known = _expectation(job, attempt)
    for name, rule in rules.items():
        found = None if name in attempt.matches else alarm(rule, tail, known)
        if found is not None:
            attempt.matches[name] = 1
            event = MetricAlarm(
                job=job.spec.name,
                attempt=attempt.number,
                rule=name,
                iteration=tail[-1].iteration,
                value=found.value,
                expected=found.expected,
                last_good=found.last_good,
                message=found.message,
            )
            events.append(event)


def _expectation(job: JobRecord, attempt: Attempt) -> Expectation:
    branch, trainer = job.spec.branch, job.spec.trainer
    decay = job.spec.decay
    before = attempt.before
    if branch and before and before.iteration == branch.iteration and job.spec.changes_data:
        before = None  # its own first losses are of other data than its parent's
    first = next(iter(attempt.first_logged), None)
    if decay is None:
        return Expectation(job.logs_loss, _no_plan, None, before, first)
    return Expectation(
        logs_loss=job.logs_loss,
        planned_rate=lambda at: trainer.planned_rate(decay, at),
        peak_rate=trainer.planned_rate(decay, decay.falls_from),
        before=before,
        first_logged=first,
    )


def _no_plan(iteration: int) -> None:
    """A training keeps the rate of its own command line."""
    del iteration


class RatesBeside:
    """The learning rates that a trainer writes beside its log, minutes behind it."""

    def __init__(self) -> None:
        self._reader = RateReader()
        self._tail: list[Logged] = []

    def alarms(self, job: JobRecord, attempt: Attempt, watched: Watched) -> list[Event]:
        """Note the new ones; an event for each rule about rates that they break, once an attempt.

        Raises OSError where they cannot be read.
        """
        events: list[Event] = []
        files = job.spec.trainer.rate_files(Path(job.spec.save_dir))
        if files is None:
            return events
        about = {n: r for n, r in watched.metric_rules.items() if value_of(r) == "learning_rate"}
        for iteration, rate in self._reader.read(files):
            self._tail = with_logged(
                self._tail, Logged(iteration, None, rate, None), max(1, watched.window)
            )
            _add(job, attempt, about, self._tail, events)
        if self._tail:
            job.learning_rate = self._tail[-1].learning_rate
        return events


class SilentLines:
    """The lines of a log as long as none of them has named an iteration."""

    def __init__(self) -> None:
        self._count = 0
        self._last = b""
        self._attempt: int | None = None
        self._reported = False

    def add(self, attempt: Attempt, piece: Piece) -> None:
        """Count the lines of a piece."""
        if self._reported:
            return
        if self._attempt != attempt.number:
            self._count, self._attempt = 0, attempt.number
        lines = [line for line in piece.data.split(b"\n") if line.strip()]
        if lines:
            self._count += len(lines)
            self._last = lines[-1][:_SHOWN]

    def report(self, job: JobRecord, attempt: Attempt, saved: int | None) -> ProgressMissing | None:
        """The event of a log that has grown in vain; ``saved`` is a new checkpoint's iteration.

        Once a monitor: the pattern of the next attempt is the same.
        """
        if job.iteration is not None or not self._count or job.spec.target_iteration is None:
            return None
        most = job.spec.trainer.LINES_BEFORE_PROGRESS
        too_many = most is not None and self._count >= most
        is_late = saved is not None and saved >= (job.spec.trainer.log_interval or 1)
        if self._reported or not (too_many or is_late):
            return None
        self._reported = True
        return ProgressMissing(
            job=job.spec.name,
            attempt=attempt.number,
            lines=self._count,
            last_line=_text(self._last),
            log=attempt.log,
        )


def metrics_row(logged: Logged) -> str:
    """A line of the metrics file."""
    return metrics_file.row(logged)


def place_of(attempt: Attempt, line: LogLine) -> str:
    """Describe the place of a line in an attempt's log."""
    file = f", file {line.generation} of it" if line.generation else ""
    return f"{attempt.log}{file}, byte {line.offset}"


def in_words(error: Exception) -> str:
    """Describe an error in a warning."""
    return printable(f"{type(error).__name__}: {error}"[:_SHOWN])


def printable(text: str) -> str:
    """Make text printable, whatever bytes a file name has."""
    return text.encode(errors="backslashreplace").decode()


def _text(raw: bytes) -> str:
    """Escape bytes that are not UTF-8: records are text."""
    return raw.decode(errors="backslashreplace")


class _QuietTime:
    """For how long a running job has stood at one place, in time that was watched."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.told: set[str] = set()
        """Rules that have heard of it."""
        self.place: tuple[int, ...] | None = None

    def count(self, place: tuple[int, ...], passed_s: float, *, runs: bool) -> None:
        """Add time in which it stood at this place; another place begins anew."""
        if place != self.place or not runs:
            self.place, self.seconds = place, 0.0
            self.told.clear()
        else:
            self.seconds += passed_s


class QuietTimes:
    """For how long a job has written nothing, and come no further than ever before."""

    def __init__(self) -> None:
        self._output, self._progress = _QuietTime(), _QuietTime()
        self._times = {"output": self._output, "progress": self._progress}
        self._furthest = self._backs = 0

    def count(self, job: JobRecord, passed_s: float, watched: Watched, *, runs: bool) -> bool:
        """Add the time since the last look; False where no rule's time can be over."""
        place = (job.cursor.generation, job.cursor.scanned, len(job.checkpoints))
        output, shortest_s = self._output, watched.shortest_s
        # Of each idle job at each look: no calls that it can do without.
        if place != output.place or not runs:
            output.place, output.seconds = place, 0.0
            output.told.clear()
        else:
            output.seconds += passed_s
        if shortest_s:
            return output.seconds >= shortest_s
        reached = max(job.iteration or 0, job.saved_iteration)
        if self._backs != len(job.roll_backs):
            self._backs, self._furthest = len(job.roll_backs), 0
        self._furthest = max(self._furthest, reached)
        self._progress.count((self._backs, self._furthest), passed_s, runs=runs)
        return True

    def passed(
        self, job: JobRecord, attempt: Attempt, rules: Mapping[str, InactivityRule]
    ) -> Iterator[LoggingStopped]:
        """An event for each rule whose time is over, once."""
        for name, rule in rules.items():
            time = self._times[rule.counts]
            if time.seconds >= rule.after and name not in time.told:
                time.told.add(name)
                yield LoggingStopped(
                    job=job.spec.name,
                    attempt=attempt.number,
                    rule=name,
                    generation=job.cursor.generation,
                    offset=job.cursor.scanned,
                    quiet_s=round(time.seconds, 1),
                    furthest=self._furthest if rule.counts == "progress" else None,
                )

    def left_s(self, rules: Mapping[str, InactivityRule]) -> list[float]:
        """Seconds that are left of the time of each rule that has not heard of it."""
        times = [(name, rule.after, self._times[rule.counts]) for name, rule in rules.items()]
        return [after - time.seconds for name, after, time in times if name not in time.told]
