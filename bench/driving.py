"""The monitor of a simulated session: the real core, one thing after the other, and its death."""

import random
from contextlib import ExitStack, suppress
from pathlib import Path

from autoexp import acting, inbox, lease
from autoexp.backends.base import FoundCheckpoint
from autoexp.errors import SchedulerError, SubmissionRefused
from autoexp.events import CheckpointComplete
from autoexp.jobs import Attempt, JobRecord
from autoexp.monitor import Monitor
from autoexp.rules.actions import Start
from autoexp.rules.records import ActionRecord
from autoexp.schedulers.base import Request, Sighting, prepare, submit_once
from autoexp.session import Session
from bench.synthetic import Cluster


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

    def step(self) -> None:
        self._left -= 1
        if self._left == 0:
            self.kills += 1
            raise Killed


class Driver:
    """flows/engine.py and flows/submitting.py without Prefect, one thing after the other."""

    def __init__(self, path: Path, cluster: Cluster) -> None:
        (path / lease.FILE).unlink(missing_ok=True)  # the pid of the one that died is ours
        self._stack = ExitStack()
        self.session, _ = self._stack.enter_context(Session.hold(path))
        self.monitor = Monitor(self.session)
        self._cluster = cluster
        self._known = set(self.session.jobs)
        self._driven = set(self.session.jobs)

    def tick(self) -> None:
        """Ask, look, decide, act."""
        answers: dict[str, Sighting] = {}
        with suppress(SchedulerError):
            answers = self._cluster.query(self.monitor.tickets())
        inbox.take_on(self.session)
        look = self.monitor.look(answers)
        for action in self.session.pending_actions():
            self._perform(action)
        self._driven |= look.changed | (self.session.jobs.keys() - self._known)
        self._known |= self.session.jobs.keys()
        for name in sorted(self._driven):
            if self._drive(self.session.jobs[name]):
                self._driven.discard(name)

    def _perform(self, action: ActionRecord) -> None:
        job = acting.begin(self.session, action)
        if isinstance(action.action, Start):
            assert job is not None and isinstance(action.event, CheckpointComplete)
            found = FoundCheckpoint(action.event.iteration, Path(action.event.path))
            job.spec.trainer.seed(found, Path(job.spec.save_dir))
            acting.complete(self.session, action, job)
            self._driven.add(job.spec.name)
        else:
            acting.done(self.session, action)

    def _drive(self, job: JobRecord) -> bool:
        """Submit a job if that is wanted; False when it has to be tried again."""
        attempt, fresh = job.unsubmitted, False
        if attempt is None:
            attempt, fresh = self.session.begin_attempt(job), True
        return attempt is None or self._submit(job, attempt, fresh=fresh)

    def _submit(self, job: JobRecord, attempt: Attempt, *, fresh: bool) -> bool:
        ticket = self.session.ticket(attempt)
        request = Request(attempt.name, attempt.log, job.spec.machine)
        try:
            prepare(ticket, job.spec, attempt, self._cluster.orders(job.spec, attempt))
            job_id = submit_once(ticket, request, self._cluster, fresh=fresh)
        except SubmissionRefused as error:
            self.session.refuse(job, attempt, str(error))
        except SchedulerError:
            return False
        else:
            self.session.record_submission(job, attempt, job_id)
        return True
