"""Carries out actions of rules, phase by phase; whatever an action raises becomes its reason.

The session flow runs the phases: effects as Prefect tasks, writes on the session's thread.
"""

import logging
from collections.abc import Callable, Generator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from autoexp import proxies, sinks
from autoexp.backends.protocol import FoundCheckpoint
from autoexp.extensions.bases import OwnAction
from autoexp.jobs.spec import JobSpec
from autoexp.monitor.recorder import Recorder
from autoexp.monitor.template_values import values_of
from autoexp.operations import actions, deletion, requests
from autoexp.operations import launch as launching
from autoexp.operations.evidence import collection
from autoexp.operations.nodes import avoidance
from autoexp.operations.on_request import save
from autoexp.operations.phases import OnSession, Pause, Phase, Phases, ShownOnSession, TryAgain
from autoexp.operations.step_runs import Logger
from autoexp.operations.write_targets import write_target
from autoexp.rules.actions import (
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
from autoexp.rules.event_values import captured
from autoexp.rules.events import CheckpointComplete
from autoexp.schedulers.base import Scheduler
from autoexp.session.action_records import ActionRecord
from autoexp.session.inbox import SubmitRequest
from autoexp.session.session import Session
from autoexp.storage import atomic
from autoexp.templates import fill

if TYPE_CHECKING:
    from autoexp.monitor.monitor import Monitor

_RETRY_S = 5.0

Values = Mapping[str, str]
Doing = Generator[Phase, Any, str | None]


class CheckpointMark(NamedTuple):
    """A checkpoint in the run graph, with an arrow to the job that it starts."""

    job: str
    iteration: int
    starts: str

    @property
    def title(self) -> str:
        return f"checkpoint {self.iteration}"

    def run(self, scheduler: Scheduler) -> str:
        del scheduler
        return f"{self.job}@{self.iteration}"


class Pin(NamedTuple):
    """Pin a branch's start, or a merge's input: the parent's retention cannot delete it then."""

    event: CheckpointComplete
    spec: JobSpec
    fresh: bool
    """True if the branch has not started: what an earlier checkpoint of the same iteration left
    there, before the training was rolled back, is set aside."""

    @property
    def title(self) -> str:
        return f"pin {self.spec.name}"

    @property
    def job(self) -> str:
        return self.spec.name

    def run(self, scheduler: Scheduler) -> int:
        """Seed the branch; returns how many bytes were copied."""
        del scheduler
        event, spec = self.event, self.spec
        save_dir = spec.input_dir(event.iteration) if spec.merge else Path(spec.save_dir)
        aside = save_dir.with_name(f"{save_dir.name}-set-aside-{event.generation}")
        if self.fresh and event.generation and save_dir.exists() and not aside.exists():
            save_dir.rename(aside)
        return spec.trainer.seed(FoundCheckpoint(event.iteration, Path(event.path)), save_dir)


class CommandRun(NamedTuple):
    """Run a command to its end; its arguments are passed on as they are."""

    arguments: tuple[str, ...]
    directory: Path
    environment: dict[str, str]
    timeout_s: float
    retries: int = 0

    @property
    def title(self) -> str:
        return sinks.title(f"run {' '.join(self.arguments)}")

    def run(self, scheduler: Scheduler) -> str:
        raise NotImplementedError  # the flow runs it through prefect-shell


class OwnRun(NamedTuple):
    """Run an action that a package brings."""

    action: OwnAction
    values: Values
    session: Path

    @property
    def title(self) -> str:
        return sinks.title(self.action.kind)

    def run(self, scheduler: Scheduler) -> str | None:
        del scheduler
        came = self.action.run(self.values, self.session)
        return None if came is None else str(came)


class Publication(NamedTuple):
    """Emit a Prefect event, to which automations can react."""

    name: str
    session: str
    payload: dict[str, str]

    @property
    def title(self) -> str:
        return f"publish {self.name}"

    def run(self, scheduler: Scheduler) -> None:
        del scheduler  # the flow emits it


class Line(NamedTuple):
    """Append a line to a file, unless it is there already."""

    session: Path
    """The session's directory."""
    action: ActionRecord
    values: Values
    text: str

    @property
    def title(self) -> str:
        assert isinstance(self.action.action, WriteFile)
        return sinks.title(f"write {fill(self.action.action.path, self.values)}")

    def run(self, scheduler: Scheduler) -> str:
        """Append the line; raises SessionError for a file that the rule cannot write."""
        del scheduler
        path = write_target(self.session, self.action, self.values)
        by_umask = not path.is_relative_to(self.session.resolve())
        return atomic.append_once(path, self.text, by_umask=by_umask)


def carry_out(action: ActionRecord, monitor: "Monitor", log: Logger) -> Phases:
    """Do an action, once; what it raises is recorded as its reason.

    After a transient failure it is retried after a while.
    """
    recorder = monitor.recorder
    try:
        about = yield OnSession(partial(_begin, recorder, action.key))
        if isinstance(action.action, Start):
            yield from _start(action, about, recorder, log)
        elif isinstance(action.action, Keep):
            yield from _keep(action, about, recorder, log)
        elif isinstance(action.action, Delete):
            yield from _delete(action, recorder)
        else:
            result = yield from _do(action, about, recorder, log)
            yield _change(recorder, actions.done, action, result)
    except Exception as error:
        yield from _note_failure(action, error, recorder, log)
    yield OnSession(partial(monitor.worklist.end_action, action.key))


def _change(
    recorder: Recorder, change: Callable[..., Any], action: ActionRecord, *arguments: Any
) -> OnSession:
    """Change the action's own record, of which `action` is a copy."""

    def call() -> Any:
        found = recorder.session.actions[action.key]
        return recorder.apply(lambda session: change(session, found, *arguments))

    return OnSession(call)


class _About(NamedTuple):
    """The subject of an action, as it is when the action starts."""

    values: Values
    job: JobSpec | None
    is_launched: bool
    path: Path
    session_id: str


def _begin(recorder: Recorder, key: str) -> _About:
    session = recorder.session
    action = session.actions[key]
    recorder.write_down()
    job = actions.begin(session, action)
    values = values_of(action.event, action.rule, session)
    launched = job is not None and job.launched
    return _About(values, job.spec if job else None, launched, session.path, session.id)


def _note_failure(
    action: ActionRecord, error: Exception, recorder: Recorder, log: Logger
) -> Phases:
    # A server that fails in the middle of a task run must not cost a cooldown.
    is_passing = isinstance(error, TryAgain) and isinstance(action.action, Start | Keep | Delete)
    if is_passing or (isinstance(error, OSError) and atomic.is_passing(error)):
        log.warning("action %s: %s; retrying", action.key, error)
        yield _change(recorder, actions.postpone, action, str(error))
        yield Pause(_RETRY_S)
        return
    log.error("action %s failed: %s", action.key, error)
    output = getattr(error, "output", None)
    try:
        yield _change(recorder, actions.fail, action, str(error), output)
    except Exception as worse:
        log.error("action %s: its end cannot be written (%s); retrying", action.key, worse)
        yield Pause(_RETRY_S)


def _start(action: ActionRecord, about: _About, recorder: Recorder, log: Logger) -> Phases:
    event, spec = action.event, about.job
    assert spec is not None
    if isinstance(event, CheckpointComplete):
        yield CheckpointMark(event.job, event.iteration, spec.name)
        copied = yield Pin(event, spec, fresh=not about.is_launched)
        if copied:
            log.info("%s: pinned %s by a copy of %.1f MB", spec.title, event.path, copied / 1e6)
    yield _change(recorder, _complete, action, spec.name)


def _keep(action: ActionRecord, about: _About, recorder: Recorder, log: Logger) -> Phases:
    """Pin an input of a merge; of one that has started, the inputs stay what they were."""
    event, spec = action.event, about.job
    assert spec is not None and isinstance(event, CheckpointComplete)
    if not about.is_launched:
        copied = yield Pin(event, spec, fresh=True)
        if copied:
            log.info("%s: pinned %s by a copy of %.1f MB", spec.title, event.path, copied / 1e6)
    yield _change(recorder, actions.done, action)


def _delete(action: ActionRecord, recorder: Recorder) -> Phases:
    """Delete a checkpoint in bounded parts, unless something has come to need it."""
    removal = yield OnSession(partial(deletion.begin, recorder, action.key))
    if removal is None:
        return
    files = freed = 0
    while True:
        part = yield removal
        files, freed = files + part.files, freed + part.bytes
        if part.is_done:
            break
    ended = partial(deletion.complete, recorder, action.key, files, freed)
    result = yield OnSession(ended)
    yield _change(recorder, actions.done, action, result)


def _measure(action: ActionRecord, recorder: Recorder) -> Doing:
    event = action.event
    assert isinstance(event, CheckpointComplete)
    size = yield deletion.Measuring(Path(event.path))
    yield OnSession(partial(recorder.apply, deletion.measured, event, size))
    return in_bytes(size)


def _refuse_while_pinning(session: Session, spec: JobSpec) -> None:
    """Raise TryAgain while an input of a merge is still to be pinned."""
    for other in session.pending_actions():
        if isinstance(other.action, Keep) and other.action.job == spec.name:
            raise TryAgain(f"{other.key} is still to be done")


def _complete(session: Session, action: ActionRecord, name: str) -> None:
    _refuse_while_pinning(session, session.jobs[name].spec)
    actions.complete(session, action, session.jobs[name])


def _do(action: ActionRecord, about: _About, recorder: Recorder, log: Logger) -> Doing:
    """Do one action; returns its result."""
    values = about.values
    match action.action:
        case Log(message=message, level=level):
            told = fill(message, values)
            log.log(logging.getLevelNamesMapping()[level.upper()], "%s", told)
            return told
        case RunCommand() as command:
            output: str = yield CommandRun(
                sinks.arguments(command.run, values, captured(action.event, values)),
                about.path,
                {**proxies.hidden(), **sinks.variables(command.environment, values)},
                command.timeout,
                command.retries,
            )
            return output
        case Publish(name=name, payload=payload):
            filled = {key: fill(text, values) for key, text in payload.items()}
            yield Publication(name, about.session_id, filled)
            yield OnSession(partial(actions.publish, recorder, action, filled))
            return None
        case WriteFile(line=line):
            written: str = yield Line(about.path, action, values, fill(line, values))
            return written
        case Avoid():
            return (yield from _avoid(action, recorder))
        case Measure():
            return (yield from _measure(action, recorder))
        case Save():
            telling = yield OnSession(partial(save.telling, recorder.session, action.key))
            answer: str = yield telling
            return answer
        case Launch() as launch:
            return (yield from _launch(action, launch, about, recorder))
        case Restart(evidence=evidence):
            if evidence:
                yield from collection.gather(recorder, action.key)
            return (yield from _request_and_avoid(action, recorder, _restart))
        case Finish(reason=reason) | Fail(reason=reason):
            ask = partial(_ask, actions.ask_ending, fill(reason, values))
            return (yield from _requested(action, recorder, ask))
        case Cancel():
            ask = partial(_ask, actions.ask_cancel, values)
            return (yield from _requested(action, recorder, ask))
        case ExcludeNodes():
            ask = partial(_ask, actions.exclude_nodes, values)
            return (yield from _request_and_avoid(action, recorder, ask))
        case OwnAction() as own:
            came: str | None = yield OwnRun(own, values, about.path)
            return came
        case Start() | Keep() | Delete():
            raise AssertionError("these have phases of their own")


Ask = Callable[[Recorder, ActionRecord], str]


def _ask(
    write: Callable[..., str], argument: object, recorder: Recorder, action: ActionRecord
) -> str:
    return recorder.apply(lambda session: write(session, action, argument))


def _restart(recorder: Recorder, action: ActionRecord) -> str:
    recorder.write_down()
    return actions.ask_restart(recorder, action)


def _requested(action: ActionRecord, recorder: Recorder, ask: Ask) -> Doing:
    def call() -> str:
        return ask(recorder, recorder.session.actions[action.key])

    result: str = yield ShownOnSession(f"{action.action.kind} {action.event.job}".strip(), call)
    return result


def _request_and_avoid(action: ActionRecord, recorder: Recorder, ask: Ask) -> Doing:
    """Make the request, and exclude nodes for jobs that wait in the queue."""
    result = yield from _requested(action, recorder, ask)
    yield from _tell_queue(recorder)
    return result


def _avoid(action: ActionRecord, recorder: Recorder) -> Doing:
    """Write sick nodes into the shared list, then tell SLURM of them for jobs in its queue."""
    listing = yield OnSession(partial(avoidance.listing, recorder.session, action.key))
    result = None if listing is None else (yield listing)
    yield from _tell_queue(recorder)
    return result


def _tell_queue(recorder: Recorder) -> Doing:
    found = yield OnSession(partial(avoidance.avoidance, recorder.session))
    if found is not None:
        yield found
    return None


def _launch(action: ActionRecord, launch: Launch, about: _About, recorder: Recorder) -> Doing:
    experiment = recorder.session.experiment  # frozen
    composition = launching.Launching(
        action, launch, about.values, experiment, about.path, about.session_id, about.job
    )
    jobs = yield composition
    by = f"rule {action.rule}"

    def add(session: Session) -> str:
        joining = launching.joining(session, action.key, jobs)
        return requests.add_jobs(session, SubmitRequest(jobs=joining, by=by))

    added: str = yield ShownOnSession(f"launch {jobs[0].name}", partial(recorder.apply, add))
    return added
