"""Descriptions of events and actions."""

from autoexp import sinks
from autoexp.extensions.bases import OwnAction
from autoexp.rules.actions import (
    Action,
    Avoid,
    Cancel,
    Delete,
    ExcludeNodes,
    Fail,
    Finish,
    Keep,
    Launch,
    Log,
    Measure,
    Publish,
    Restart,
    RunCommand,
    Save,
    Start,
    WriteFile,
)
from autoexp.rules.durations import in_bytes
from autoexp.rules.events import (
    AttemptJudged,
    AttemptRefused,
    BudgetPassed,
    CancelAnswered,
    CheckpointComplete,
    CheckpointDeleted,
    DiskBudgetPassed,
    Event,
    EvidenceCollected,
    ImageChanged,
    JobAdded,
    JobGivenUp,
    JobReady,
    LoggingStopped,
    LogLost,
    LogMatched,
    MetricAlarm,
    NodesFoundSick,
    ProgressMissing,
    Published,
    RequestRefused,
    RestartAsked,
    RetryAsked,
    SaveAsked,
    StartedElsewhere,
    StateChanged,
    TrunksFinished,
)

NO_PROGRESS = "no iteration is read"
"""How the description of a log without progress begins."""


def describe(event: Event) -> str:
    """Describe an event in one line, safe for a terminal."""
    return sinks.line(_words(event))


def _words(event: Event) -> str:
    match event:
        case CheckpointComplete():
            return f"checkpoint {event.iteration} of {event.job} is complete"
        case StateChanged():
            because = f" ({event.reason})" if event.reason else ""
            return f"{event.job} attempt {event.attempt}: {event.old} -> {event.new}{because}"
        case StartedElsewhere():
            return f"{event.job} attempt {event.attempt}: {event.reason}"
        case AttemptJudged():
            return f"{event.job} attempt {event.attempt}: {event.verdict} ({event.reason})"
        case JobGivenUp():
            return f"{event.job}: failed ({event.reason})"
        case JobReady():
            return f"{event.job}: dependencies satisfied"
        case AttemptRefused():
            return f"{event.job} attempt {event.attempt}: not submitted ({event.reason})"
        case ImageChanged():
            image = f"{event.image} is another file than before; see provenance/images.jsonl"
            return f"{event.job} attempt {event.attempt}: {image}"
        case JobAdded():
            return f"{event.job}: added to the session ({event.by})"
        case RetryAsked():
            return f"{event.job}: retried ({event.by})"
        case RequestRefused():
            return f"request refused: {event.reason}"
        case CancelAnswered():
            return f"{event.job} attempt {event.attempt}: cancelled, answer: {event.answer}"
        case LogLost():
            return f"{event.job} attempt {event.attempt}: {event.message}"
        case ProgressMissing():
            return f"{event.job} attempt {event.attempt}: {missing_progress(event)}"
        case LogMatched():
            return f"{event.job} attempt {event.attempt}: {event.rule}: {event.line.strip()[:200]}"
        case MetricAlarm():
            return f"{event.job} attempt {event.attempt}: {event.rule}: {event.message}"
        case LoggingStopped():
            what = "output" if event.furthest is None else f"iteration beyond {event.furthest}"
            quiet = f"no {what} for {event.quiet_s:.0f} s"
            return f"{event.job} attempt {event.attempt}: {event.rule}: {quiet}"
        case RestartAsked():
            back = event.roll_back_to
            start = "" if back is None else f" from iteration {back}"
            return f"{event.job} attempt {event.attempt}: restarts{start} ({event.reason})"
        case SaveAsked():
            return f"{event.job} attempt {event.attempt}: a checkpoint is asked for ({event.by})"
        case EvidenceCollected():
            return f"{event.job} attempt {event.attempt}: {evidence(event)}"
        case NodesFoundSick():
            named = "; ".join(f"{node}: {why}" for node, why in event.nodes.items())
            return f"{event.job} attempt {event.attempt}: sick nodes: {named}"
        case TrunksFinished():
            return f"all trainings have finished ({event.trunks})"
        case BudgetPassed():
            return f"{event.rule}: {event.gpu_hours:.1f} GPU hours used"
        case CheckpointDeleted():
            freed = f"{event.files} files, {in_bytes(event.bytes)}"
            return f"checkpoint {event.iteration} of {event.job} was deleted ({freed})"
        case DiskBudgetPassed():
            return event.message
        case Published():
            return f"published {event.name}"


def evidence(event: EvidenceCollected) -> str:
    """Say where the ranks of an attempt stood before it was ended, and where the rest of it is."""
    told = event.sentence or "where its ranks stood cannot be told"
    lacks = f" ({event.problem})" if event.problem else ""
    return f"{told}{lacks}; evidence: {event.path}"


def missing_progress(event: ProgressMissing) -> str:
    """Describe a log that names no iteration, with its last line and what to do."""
    lines = "1 line" if event.lines == 1 else f"{event.lines} lines"
    return (
        f"{NO_PROGRESS} in {lines} of its log, the last one: {event.last_line.strip()[:120]!r}; "
        f"`autoexp backend check-log {event.log} --pattern '...'` tries another `log_line`"
    )


def describe_action(action: Action) -> str:
    """Describe an action, as it follows a rule's name: `restart the attempt`."""
    match action:
        case Start(job=job):
            return f"start {job}"
        case Keep(job=job):
            return f"pin the checkpoint for {job}"
        case Measure():
            return "measure the checkpoint"
        case Avoid():
            return "have others avoid the sick nodes"
        case Delete():
            return "delete the checkpoint"
        case Save(restart=restart):
            return "save, end and go on in a new attempt" if restart else "save a checkpoint"
        case Launch(name=name):
            return f"launch {name or 'a cooldown'}"
        case Restart(roll_back=back):
            return "restart the attempt" + (" from the last good checkpoint" if back else "")
        case RunCommand(run=run):
            return f"run `{' '.join(run)}`"
        case Cancel(jobs=jobs):
            return f"cancel {', '.join(jobs) or 'the job'}"
        case Finish():
            return "mark the job as finished"
        case Fail():
            return "fail the job"
        case Log():
            return "log a message"
        case Publish(name=name):
            return f"publish {name}"
        case WriteFile(path=path):
            return f"write a line to {path}"
        case ExcludeNodes():
            return "exclude nodes"
        case OwnAction(kind=kind):
            return kind
