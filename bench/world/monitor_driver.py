"""The monitor of a simulated session: the real core, one thing after the other, and its death."""

import logging
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from autoexp.errors import SchedulerError
from autoexp.monitor.monitor import Monitor
from autoexp.operations import action_runs, requests
from autoexp.operations.phases import run
from autoexp.operations.step_runs import carry_out
from autoexp.schedulers.base import JobStatus
from autoexp.session.session import Session
from autoexp.storage import lease
from bench.world.cluster import Cluster

_LOG = logging.getLogger(__name__)


class Killed(BaseException):
    """The monitor is gone, at this very line."""


class Fate:
    """Kills the monitor at some durable step."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._left = 0
        self.kills = 0

    def threaten(self) -> None:
        """Let the monitor die within its next steps."""
        self._left = self._dice.randint(1, 60)

    @contextmanager
    def spared(self) -> Iterator[None]:
        """What is done meanwhile is somebody else's than the monitor's."""
        left, self._left = self._left, 0
        yield
        self._left = left

    def step(self) -> None:
        self._left -= 1
        if self._left == 0:
            self.kills += 1
            raise Killed


class Driver:
    """The loop of a session, one thing after the other: the steps and actions are the real ones."""

    def __init__(self, path: Path, cluster: Cluster) -> None:
        (path / lease.FILE).unlink(missing_ok=True)  # the pid of the one that died is ours
        self._stack = ExitStack()
        self.session, _ = self._stack.enter_context(Session.hold(path))
        self.monitor = Monitor(self.session)
        self._cluster = cluster

    def tick(self) -> None:
        """Ask, look, decide, act until nothing is left to do for now."""
        answers: dict[str, JobStatus] = {}
        with suppress(SchedulerError):
            answers = self._cluster.query(self.monitor.refs())
        self.monitor.recorder.apply(requests.process_requests)
        self.monitor.look(answers)
        work = self.monitor.worklist.next_work()
        while work.steps or work.actions:
            for action in work.actions:
                run(action_runs.carry_out(action, self.monitor, _LOG), self._cluster)
            for step in work.steps:
                run(carry_out(step, self.monitor, _LOG), self._cluster)
            work = self.monitor.worklist.next_work(after_look=False)
