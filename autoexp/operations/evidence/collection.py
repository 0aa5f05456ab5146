"""Collects evidence of a hung attempt before a restart ends it; whatever goes wrong, that goes on.

The action's count of tries is on disk before, the event with what was found after. A monitor that
is killed in between collects once more, and a second time no longer.
"""

import threading
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from autoexp import payload, sinks, states
from autoexp.errors import SchedulerUnavailable
from autoexp.monitor.recorder import Recorder
from autoexp.operations.evidence import collector, flight_recorder, stacks
from autoexp.operations.phases import OnSession, Phase
from autoexp.resources import node
from autoexp.resources.machines import LocalMachine, SlurmCluster
from autoexp.rules.events import EvidenceCollected
from autoexp.schedulers.base import AttemptRef, Scheduler
from autoexp.schedulers.launch import python_of
from autoexp.schedulers.on_nodes import run_on_nodes
from autoexp.schedulers.slurm.commands import SlurmCommandFailed, in_one_line
from autoexp.session.session import Session
from autoexp.storage import atomic

FOLDER = "evidence"
_TRIES = 2
_BOUND_S = 60.0
"""Nothing takes longer, whatever hangs."""
_STEP_S, _COLLECTOR_S = 52.0, 40.0
_LOG_END = 64 << 10
_LARGEST_REPORT = 32 << 20
_LONGEST = 300


class Found(NamedTuple):
    """What came of it."""

    sentence: str | None
    """Where the ranks stand; None where that cannot be told."""
    problem: str | None
    """What went wrong, in one line."""


class Collection(NamedTuple):
    """Have each node of an attempt write down what its processes do."""

    ref: AttemptRef
    machine: LocalMachine | SlurmCluster
    log: Path
    stack_signal: str | None

    @property
    def title(self) -> str:
        return f"evidence {self.ref.key}"

    @property
    def folder(self) -> Path:
        return self.ref.directory / FOLDER

    def run(self, scheduler: Scheduler) -> Found:
        """Collect within a minute; never raises. What hangs is left behind in its thread."""
        del scheduler
        found = [Found(None, f"it did not end within {_BOUND_S:g} s")]

        def collect() -> None:
            try:
                found[0] = self._collect()
            except Exception as error:
                found[0] = Found(None, f"{type(error).__name__}: {error}")

        thread = threading.Thread(target=collect, name=self.title, daemon=True)
        thread.start()
        thread.join(_BOUND_S)
        return found[0]

    def _collect(self) -> Found:
        atomic.make_directory(self.folder)
        for source in (payload.__file__, node.__file__, collector.__file__):
            atomic.write(self.folder / Path(source).name, Path(source).read_bytes())
        self._keep_log_end()
        words = [
            *(python_of(self.machine), str(self.folder / "collector.py"), self.ref.key),
            *(str(self.ref.directory), str(self.folder), f"{_COLLECTOR_S:g}"),
            *([self.stack_signal] if self.stack_signal else []),
        ]
        problem = None
        try:
            run_on_nodes(self.machine, str(self.ref.job_id), words, _STEP_S)
        except SlurmCommandFailed as error:
            problem = in_one_line(error.stderr)
        except SchedulerUnavailable as error:
            problem = str(error)
        reports = read_reports(self.folder)
        return Found(sentence(reports), problem or _lack(reports, self.machine))

    def _keep_log_end(self) -> None:
        try:
            with atomic.open_to_read(self.log) as file:
                file.seek(max(0, self.log.stat().st_size - _LOG_END))
                atomic.write(self.folder / "log-end.txt", file.read(_LOG_END))
        except OSError:
            pass  # there is none


def sentence(reports: list[stacks.NodeReport]) -> str | None:
    """What the reports of all nodes tell, in a sentence; None where they do not."""
    processes = [process for report in reports for process in report.processes]
    recorded = {each.rank: each.collectives for each in processes if each.rank is not None}
    records = flight_recorder.sentence(recorded)
    told = [stacks.sentence(reports), records and f"flight recorder: {records}"]
    return "; ".join(text for text in told if text) or None


def _lack(reports: list[stacks.NodeReport], machine: LocalMachine | SlurmCluster) -> str | None:
    nodes = machine.nodes if isinstance(machine, SlurmCluster) else 1
    if len(reports) < nodes:
        return f"{len(reports)} of {nodes} nodes answered"
    if not any(report.processes for report in reports):
        return "no process of the trainer was found"
    cut = [report.node for report in reports if not report.is_whole]
    return f"it was cut short on {', '.join(cut)}" if cut else None


def read_reports(folder: Path) -> list[stacks.NodeReport]:
    """The reports of all nodes; one that cannot be read is left out."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            raw = atomic.read(path, _LARGEST_REPORT)
            found.append(stacks.NodeReport.model_validate_json(raw))
        except (OSError, ValidationError):
            continue
    return found


def gather(recorder: Recorder, key: str) -> Generator[Phase, Any, None]:
    """Collect what the attempt of a restart does, unless it has ended or that is done."""
    collection = yield OnSession(partial(_begin, recorder.session, key))
    if collection is None:
        return
    found = yield collection
    yield OnSession(partial(_note, recorder, key, collection.folder, found))


def _begin(session: Session, key: str) -> Collection | None:
    action = session.actions[key]
    job = session.jobs[action.event.job]
    attempt = next((a for a in job.attempts if a.number == action.attempt), None)
    if attempt is None or attempt.job_id is None or not states.is_running(attempt.state):
        return None
    is_known = session.journal.has(_event(job.spec.name, attempt.number).key)
    if is_known or job.is_ending or action.attempts > _TRIES:
        return None
    ref, signal = session.ref(attempt), job.spec.trainer.stack_signal
    return Collection(ref, job.spec.machine, Path(attempt.log), signal)


def _event(job: str, attempt: int, path: str = "", **found: str | None) -> EvidenceCollected:
    return EvidenceCollected(job=job, attempt=attempt, path=path, **found)


def _note(recorder: Recorder, key: str, folder: Path, found: Found) -> None:
    action = recorder.session.actions[key]
    said = {
        "sentence": found.sentence and sinks.line(found.sentence)[:_LONGEST],
        "problem": found.problem and sinks.line(found.problem)[:_LONGEST],
    }
    event = _event(action.event.job, action.attempt or 0, str(folder), **said)
    recorder.record_and_decide([event])
