"""What lines of a log mean for their job, as events and in words; all of it can be written down."""

from collections.abc import Iterator, Mapping

from autoexp.findings import LogMatched, MetricAlarm
from autoexp.jobs import Attempt, JobRecord, Logged
from autoexp.rules.language import LogRule, MetricRule
from autoexp.rules.matching import Hit
from autoexp.rules.metrics import Expectation, alarm
from autoexp.rules.values import typed

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


def metric_alarms(
    job: JobRecord, attempt: Attempt, rules: Mapping[str, MetricRule]
) -> Iterator[MetricAlarm]:
    """The metric rules that the job's tail breaks, each once in an attempt."""
    branch, trainer = job.spec.branch, job.spec.trainer
    known = Expectation(
        logs_loss=job.logs_loss,
        planned_rate=lambda at: None if branch is None else trainer.planned_rate(branch, at),
        peak_rate=None if branch is None else trainer.planned_rate(branch, branch.iteration),
    )
    for name, rule in rules.items():
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


def metrics_row(logged: Logged) -> str:
    """A line of the metrics file: iteration, loss, learning rate, seconds per iteration."""
    return ",".join("" if cell is None else repr(cell) for cell in logged) + "\n"


def place_of(attempt: Attempt, generation: int, offset: int) -> str:
    """Where a line stands in an attempt's log, for people."""
    file = f", file {generation} of it" if generation else ""
    return f"{attempt.log}{file}, byte {offset}"


def in_words(error: Exception) -> str:
    """An error as a warning names it."""
    return printable(f"{type(error).__name__}: {error}"[:_SHOWN])


def printable(text: str) -> str:
    """Text that can be written down, whatever bytes the name of a file has."""
    return text.encode(errors="backslashreplace").decode()


def _text(raw: bytes) -> str:
    """What is not UTF-8 is shown as it is written in a program: records are text."""
    return raw.decode(errors="backslashreplace")
