"""The loop of a session without Prefect, driven by a test."""

import itertools
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from autoexp.errors import SchedulerError
from autoexp.monitor import steps
from autoexp.monitor.monitor import Monitor
from autoexp.monitor.worklist import Work
from autoexp.operations import action_runs, requests
from autoexp.operations.action_runs import Pin
from autoexp.operations.phases import Phase, do, in_turns
from autoexp.operations.step_runs import carry_out, named
from autoexp.schedulers.base import AttemptRef, JobStatus, Scheduler
from autoexp.session.action_records import ActionRecord
from autoexp.session.session import Session
from autoexp.storage import lease

LOG = logging.getLogger(__name__)


class Driver:
    """The loop of a session, one thing after the other: the steps and actions are the real ones."""

    def __init__(self, path: Path, scheduler: Scheduler) -> None:
        (path / lease.FILE).unlink(missing_ok=True)  # the pid of the one that died is ours
        self._held = Session.hold(path)
        self.session, _ = self._held.__enter__()
        self.monitor = Monitor(self.session, clock=lambda: self.seconds)
        self.scheduler = scheduler
        self.work: dict[str, Iterator[None]] = {}
        self.is_over = False
        self.seconds = 0.0
        self._fails_after = 0
        self._numbers = itertools.count()
        self._answers: dict[str, JobStatus] = {}

    def tick(self) -> None:
        self.seconds += 1000.0  # whatever failed may be tried again
        answers, self._answers = self._answers, {}
        if "ask" not in self.work:
            self._start("ask", self._ask(self.monitor.refs()))
        self.monitor.recorder.apply(requests.process_requests)
        self.monitor.look(answers)
        self._hand_over(self.monitor.worklist.next_work())

    def go_on(self, names: list[str]) -> None:
        for name in names:
            if next(self.work[name], "over") == "over":
                del self.work[name]
        self._hand_over(self.monitor.worklist.next_work(after_look=False))

    def fails_after(self, phases: int) -> None:
        """Let the phase that comes after so many raise, whatever it is."""
        self._fails_after = phases

    def round(self) -> None:
        self.tick()
        for _ in range(6):
            self.go_on(list(self.work))

    def _hand_over(self, work: Work) -> None:
        self.is_over = work.is_over
        for step in work.steps:
            self._start(named(step), self._take(step))
        for action in work.actions:
            self._start(action.key, self._act(action))

    def _start(self, name: str, work: Iterator[None]) -> None:
        name = name if name not in self.work else f"{name} {next(self._numbers)}"
        self.work[name] = work
        if next(work, "over") == "over":
            del self.work[name]

    # As in flows/engine/session_run.py, where a child that raises ends nobody else.

    def _take(self, step: steps.NextStep) -> Iterator[None]:
        try:
            yield from in_turns(carry_out(step, self.monitor, LOG), self._do)
        except Exception as error:
            self.monitor.worklist.fail_step(step, str(error))

    def _act(self, action: ActionRecord) -> Iterator[None]:
        try:
            yield from in_turns(action_runs.carry_out(action, self.monitor, LOG), self._do)
        except Exception:
            yield
            self.monitor.worklist.end_action(action.key)

    def _do(self, phase: Phase) -> Any:
        self._fails_after -= 1
        if self._fails_after == 0:
            raise RuntimeError("whatever it is")
        if isinstance(phase, Pin) and getattr(
            self.scheduler, "silent", False
        ):  # the filesystem fails with it
            raise RuntimeError("stale file handle")
        return do(phase, self.scheduler)

    def _ask(self, refs: list[AttemptRef]) -> Iterator[None]:
        yield
        with suppress(SchedulerError):
            self._answers |= self.scheduler.query(refs)
