"""A session under everything at once: nothing is doubled and nothing lost, whatever dies when."""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import stateful as hs

from autoexp import acting, arrays, inbox, lease, states
from autoexp.backends.base import FoundCheckpoint
from autoexp.backends.megatron_layout import TRACKER, folder_name, tracked_iteration
from autoexp.compose import Composed
from autoexp.creation import create
from autoexp.errors import SchedulerError, SubmissionRefused
from autoexp.jobs import JobRecord, Kind, Verdict
from autoexp.machines import SlurmCluster
from autoexp.monitor import Monitor
from autoexp.rules import ActionRecord
from autoexp.schedulers.base import Request, Sighting, prepare, submit_once
from autoexp.session import Session
from tests.core.conftest import spec_of
from tests.core.test_arrays import Fate, FakeScheduler

Work = Iterator[None]


class Driver:
    """flows/engine.py and flows/submitting.py without Prefect; a generator for each coroutine."""

    def __init__(self, path: Path, scheduler: FakeScheduler) -> None:
        (path / lease.FILE).unlink(missing_ok=True)  # the pid of the one that died is ours
        self._held = Session.hold(path)
        self.session, _ = self._held.__enter__()
        self.monitor = Monitor(self.session)
        self.scheduler = scheduler
        self.work: dict[str, Work] = {}
        self._answers: dict[str, Sighting] = {}
        self._driven: set[str] = set()

    def tick(self) -> None:
        """Look and act."""
        answers, self._answers = self._answers, {}
        self._start("ask", self._ask())
        if inbox.take_on(self.session).added:
            self.monitor.heed_new_jobs()
        self.monitor.look(answers)
        for action in self.session.pending_actions():
            self._start(action.key, self._perform(action))
        new = [job for job in self.session.jobs.values() if job.launched and not job.is_over]
        new = [job for job in new if job.spec.name not in self._driven]
        self._driven |= {job.spec.name for job in new}
        for group in arrays.groups(new, 100):
            self._start(f"first {group[0].spec.name}", self._drive_first(group))
        self._start("cancel", self._cancel())

    def go_on(self, names: list[str]) -> None:
        """Let those who wait go on to where they wait again."""
        for name in names:
            if next(self.work[name], "over") == "over":
                del self.work[name]

    def round(self) -> None:
        """Look, act, and let everybody do what there is to do."""
        self.tick()
        for _ in range(4):
            self.go_on(list(self.work))

    def _start(self, name: str, work: Work) -> None:
        if name not in self.work:
            self.work[name] = work
            self.go_on([name])

    def _ask(self) -> Work:
        tickets = self.monitor.tickets()
        yield
        with suppress(SchedulerError):
            self._answers |= self.scheduler.query(tickets)

    def _perform(self, action: ActionRecord) -> Work:
        job = acting.begin(self.session, action)
        yield
        if self.scheduler.silent:  # the filesystem is away too
            acting.fail(self.session, action, "no space left on device")
            return
        found = FoundCheckpoint(action.event.iteration, Path(action.event.path))
        job.spec.trainer.seed(found, Path(job.spec.save_dir))
        yield
        acting.complete(self.session, action, job)

    def _cancel(self) -> Work:
        jobs = [job for job in self.session.jobs.values() if job.cancel_requested or job.is_over]
        attempts = [a for job in jobs for a in job.open_attempts if a.job_id is not None]
        yield
        with suppress(SchedulerError):
            self.scheduler.cancel([self.session.ticket(attempt) for attempt in attempts])

    def _drive_first(self, group: arrays.Group) -> Work:
        begun = group[0].unsubmitted
        if len(group) > 1 or (begun is not None and begun.array_index is not None):
            yield
            joining = group if begun else arrays.begin(self.session, group)
            submit = partial(arrays.submit, self.session, joining, self.scheduler)
            fresh = begun is None
            while any(job.unsubmitted for job in joining):
                yield from self._bring(joining, submit, fresh=fresh)
                fresh = False
        for job in group:
            self._start(job.spec.name, self._drive(job))

    def _drive(self, job: JobRecord) -> Work:
        while not (job.is_over and job.unsubmitted is None):
            fresh = job.unsubmitted is None
            if not fresh or self.session.begin_attempt(job):
                yield from self._bring([job], partial(self._submit, job), fresh=fresh)
            yield

    def _submit(self, job: JobRecord, *, fresh: bool) -> list[str]:
        attempt = job.attempts[-1]
        ticket = self.session.ticket(attempt)
        prepare(ticket, job.spec, attempt, self.scheduler.orders(job.spec, attempt))
        request = Request(attempt.name, attempt.log, job.spec.machine, after=attempt.after)
        return [submit_once(ticket, request, self.scheduler, fresh=fresh)]

    def _bring(self, jobs: arrays.Group, submit: Callable[..., list[str]], fresh: bool) -> Work:
        yield
        try:
            job_ids = submit(fresh=fresh)
        except SubmissionRefused as error:
            for job in jobs:
                self.session.refuse(job, job.attempts[-1], str(error))
        except SchedulerError:
            return
        else:
            yield
            for job, job_id in zip(jobs, job_ids, strict=True):
                self.session.record_submission(job, job.attempts[-1], job_id)


class Trainer:
    """What a running job writes: log lines, and checkpoints that it may leave unfinished."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.job, self.log = Path(spec["cwd"]).name, Path(spec["log"])
        self.save_dir = Path(spec["cwd"]) / "checkpoints"
        flags = dict(zip(spec["command"], spec["command"][1:], strict=False))
        self.target = int(flags.get("--train-iters", 0))
        self.iteration = tracked_iteration(self.save_dir) or 0
        assert self.iteration or "--exit-on-missing-checkpoint" not in flags
        self.unfinished = False

    def write(self, text: str) -> None:
        with self.log.open("a") as file:
            file.write(text)

    def train(self, metadata: str | None) -> int | None:
        """Go on to the next checkpoint, or finish it; returns its iteration once it is complete."""
        if not self.unfinished:
            if self.iteration >= self.target:
                return None
            self.iteration = min(self.target, self.iteration // 100 * 100 + 100)
            self.write(f" iteration {self.iteration:8d}/ {self.target} | lm loss: 2.5 |\n")
        folder = self.save_dir / folder_name(self.iteration)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metadata.json").write_text(metadata or "{}")
        # The tracker comes last.
        self.unfinished = not self.unfinished and metadata is not None
        if self.unfinished:
            return None
        (folder / "metadata.json").write_text("{}")
        (self.save_dir / TRACKER).write_text(str(self.iteration))
        return self.iteration


def small_job(name: str, command: str) -> inbox.SubmitRequest:
    machine = SlurmCluster(arrays=True)
    spec = spec_of(command, name=name, kind=Kind.COMMAND, machine=machine, directory=Path(name))
    return inbox.SubmitRequest(jobs=(spec,), by="ann")


def change(point: int, verb: Any) -> inbox.ActionRequest:
    key = f"start-tiny-cd{point}--checkpoint_tiny_{point}--0"
    return inbox.ActionRequest(key=key, verb=verb, by="ann")


REQUESTS = (
    *(change(point, verb) for point in (100, 200) for verb in ("retry", "retry", "drop")),
    *(small_job(name, command) for name in ("b1", "b2") for command in ("true", "true", "false")),
    *(inbox.CancelRequest(jobs=(name,), by="ann") for name in ("nobody", "b1", "tiny-cd100")),
    inbox.CancelRequest(by="ann"),
)
# States that a job survives come more often than those that end it for good.
STATES = (*("PENDING", "SUSPENDED", "NEW_IN_99", "TIMEOUT", "NODE_FAIL") * 3,)
STATES += states.terminal_states()
at = hs.rule(which=st.integers(0, 5), what=st.just(""))


class Play(hs.RuleBasedStateMachine):
    """One session, its trainers, its scheduler, and a monitor that dies again and again."""

    composed: Composed
    fate: Fate

    @hs.initialize(chain=st.integers(1, 2), most=st.sampled_from([None, 2]), rare=st.booleans())
    def begin(self, chain: int, most: int | None, rare: bool) -> None:
        self.folder = tempfile.TemporaryDirectory()
        old = self.composed.experiment
        saving = {"save_progress_every_s": 1e6 if rare else 0.0}
        changes = {
            "slurm": SlurmCluster(chain=chain, max_jobs=most, arrays=True),
            "monitoring": old.monitoring.model_copy(update=saving),
        }
        changed = self.composed._replace(experiment=old.model_copy(update=changes))
        self.path = create(changed, Path(self.folder.name), session_id="s1")
        self.scheduler = FakeScheduler()
        self.trainers: dict[str, Trainer] = {}
        self.complete: set[tuple[str, int]] = set()
        self.verdicts: dict[str, str] = {}
        self.cancelled: dict[str, int] = {}
        self.resume()
        self.driver.round()

    def resume(self) -> None:
        self.driver = Driver(self.path, self.scheduler)

    @property
    def running(self) -> list[str]:
        """The jobs that run now; those that may start have been started."""
        alive = [job_id for job_id, job in self.scheduler.jobs.items() if job.is_alive]
        for job_id in alive:
            job = self.scheduler.jobs[job_id]
            if job.state == "PENDING" and job.after not in alive:
                job.state = "RUNNING"
                self.trainers[job_id] = Trainer(job.spec)
        return [job_id for job_id in alive if self.scheduler.jobs[job_id].state == "RUNNING"]
