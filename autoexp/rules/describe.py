"""Events in words."""

from autoexp import sinks
from autoexp.rules.actions import (
    Action,
    Cancel,
    ExcludeNodes,
    Fail,
    Finish,
    Launch,
    Log,
    Publish,
    Restart,
    RunCommand,
    Start,
    WriteFile,
)
from autoexp.rules.events import (
    AttemptJudged,
    AttemptRefused,
    BudgetPassed,
    CancelAnswered,
    CheckpointComplete,
    Event,
    JobAdded,
    JobGivenUp,
    JobReady,
    LoggingStopped,
    LogLost,
    LogMatched,
    MetricAlarm,
    Published,
    RequestRefused,
    RestartAsked,
    RetryAsked,
    StartedElsewhere,
    StateChanged,
    TrunksFinished,
)


def describe(event: Event) -> str:
    """One line for people, safe for a terminal."""
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
            return f"{event.job}: all that it waited for is there"
        case AttemptRefused():
            return f"{event.job} attempt {event.attempt}: not submitted ({event.reason})"
        case JobAdded():
            return f"{event.job}: joined the session ({event.by})"
        case RetryAsked():
            return f"{event.job}: is run again ({event.by})"
        case RequestRefused():
            return f"request refused: {event.reason}"
        case CancelAnswered():
            return f"{event.job} attempt {event.attempt}: cancelled, answer: {event.answer}"
        case LogLost():
            return f"{event.job} attempt {event.attempt}: {event.message}"
        case LogMatched():
            return f"{event.job} attempt {event.attempt}: {event.rule}: {event.line.strip()[:200]}"
        case MetricAlarm():
            return f"{event.job} attempt {event.attempt}: {event.rule}: {event.message}"
        case LoggingStopped():
            quiet = f"nothing new for {event.quiet_s:.0f} s"
            return f"{event.job} attempt {event.attempt}: {event.rule}: {quiet}"
        case RestartAsked():
            back = event.roll_back_to
            start = "" if back is None else f" from iteration {back}"
            return f"{event.job} attempt {event.attempt}: restarts{start} ({event.reason})"
        case TrunksFinished():
            return f"all trainings have finished ({event.trunks})"
        case BudgetPassed():
            return f"{event.rule}: {event.gpu_hours:.1f} GPU hours used"
        case Published():
            return f"published {event.name}"


def describe_action(action: Action) -> str:
    """What an action is to do, as it follows on a rule's name: `restart the attempt`."""
    match action:
        case Start(job=job):
            return f"start {job}"
        case Launch(name=name):
            return f"launch {name or 'a cooldown'}"
        case Restart(roll_back=back):
            return "restart the attempt" + (" from before the trouble" if back else "")
        case RunCommand(run=run):
            return f"run `{' '.join(run)}`"
        case Cancel(jobs=jobs):
            return f"cancel {', '.join(jobs) or 'the job'}"
        case Finish():
            return "let the job count as finished"
        case Fail():
            return "fail the job"
        case Log():
            return "say so"
        case Publish(name=name):
            return f"publish {name}"
        case WriteFile(path=path):
            return f"write a line to {path}"
        case ExcludeNodes():
            return "exclude nodes"
