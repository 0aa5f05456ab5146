"""A session under everything at once: nothing is doubled, nothing lost, whatever dies when."""

import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from autoexp import acting, arrays, inbox, lease, states
from autoexp.backends.base import FoundCheckpoint
from autoexp.backends.megatron_layout import TRACKER, folder_name, tracked_iteration
from autoexp.compose import Composed
from autoexp.creation import create
from autoexp.errors import SchedulerError, SubmissionRefused
from autoexp.jobs import Attempt, JobRecord, Kind, Verdict
from autoexp.machines import SlurmCluster
from autoexp.monitor import Monitor
from autoexp.rules import ActionRecord, ActionStatus
from autoexp.schedulers.base import Request, Sighting, prepare, submit_once
from autoexp.session import Session
from tests.core.conftest import spec_of
from tests.core.test_arrays import Fate, FakeJob, FakeScheduler

P = ParamSpec("P")
T = TypeVar("T")
Work = Iterator[None]


class Driver:
    """flows/engine.py and flows/submitting.py without Prefect.

    A generator stands for each coroutine, and stands still where that one awaits.
    """

    def __init__(self, path: Path, scheduler: FakeScheduler) -> None:
        (path / lease.FILE).unlink(missing_ok=True)  # the pid of the one that died is ours
        self._held = Session.hold(path)
        self.session, _ = self._held.__enter__()
        self.scheduler = scheduler
        self.monitor = Monitor(self.session)
        self.work: list[Work] = []
        self.pin_fails = False
        self._answers: dict[str, Sighting] = {}
        self._busy: set[str] = set()
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
        self._drive_new()
        self._start("cancel", self._cancel())

    def _start(self, key: str, work: Work) -> None:
        def once() -> Work:
            try:
                yield from work
            finally:
                self._busy.discard(key)

        if key not in self._busy:
            self._busy.add(key)
            self.work.append(once())
            self.advance(len(self.work) - 1)

    def advance(self, which: int) -> None:
        """Let one of those who wait go on to where it waits again."""
        work = self.work[which % len(self.work)]
        if next(work, "over") == "over":
            self.work.remove(work)

    def round(self) -> None:
        self.tick()
        for _ in range(4):
            for work in list(self.work):
                if next(work, "over") == "over":
                    self.work.remove(work)

    def _ask(self) -> Work:
        tickets = self.monitor.tickets()
        yield
        try:
            self._answers |= self.scheduler.query(tickets)
        except SchedulerError:
            pass
        yield

    def _perform(self, action: ActionRecord) -> Work:
        try:
            job = acting.begin(self.session, action)
            yield
            if self.pin_fails:
                raise OSError("no space left on device")
            found = FoundCheckpoint(action.event.iteration, Path(action.event.path))
            job.spec.trainer.seed(found, Path(job.spec.save_dir))
            yield
            acting.complete(self.session, action, job)
        except OSError as error:
            acting.fail(self.session, action, str(error))

    def _cancel(self) -> Work:
        tickets = [
            self.session.ticket(attempt)
            for job in self.session.jobs.values()
            if job.cancel_requested is not None or job.is_over
            for attempt in job.open_attempts
            if attempt.job_id is not None
        ]
        yield
        try:
            self.scheduler.cancel(tickets)
        except SchedulerError:
            pass

    def _drive_new(self) -> None:
        jobs = [
            job
            for job in self.session.jobs.values()
            if job.launched and not job.is_over and job.spec.name not in self._driven
        ]
        self._driven |= {job.spec.name for job in jobs}
        for group in arrays.groups(jobs, self.scheduler.longest_array()):
            first = group[0].unsubmitted
            if len(group) > 1 or (first is not None and first.array_index is not None):
                self._start(f"array {group[0].spec.name}", self._drive_array(group))
            else:
                self._start(group[0].spec.name, self._drive(group[0]))

    def _drive_array(self, group: arrays.Group) -> Work:
        fresh = group[0].unsubmitted is None
        yield
        joining = arrays.begin(self.session, group) if fresh else group
        yield
        while joining:
            try:
                ids = arrays.submit(self.session, joining, self.scheduler, fresh=fresh)
                yield
            except SubmissionRefused as error:
                for job in joining:
                    self.session.refuse(job, job.attempts[-1], str(error))
            except SchedulerError:
                fresh = False
                yield
                continue
            else:
                for job, job_id in zip(joining, ids, strict=True):
                    self.session.record_submission(job, job.attempts[-1], job_id)
                    yield
            break
        for job in group:
            self._start(job.spec.name, self._drive(job))

    def _drive(self, job: JobRecord) -> Work:
        while not (job.is_over and job.unsubmitted is None):
            if job.unsubmitted is not None:
                yield from self._submit(job, job.unsubmitted, fresh=False)
            elif attempt := self.session.begin_attempt(job):
                yield
                yield from self._submit(job, attempt, fresh=True)
                continue
            yield

    def _submit(self, job: JobRecord, attempt: Attempt, *, fresh: bool) -> Work:
        ticket = self.session.ticket(attempt)
        try:
            prepare(ticket, job.spec, attempt, self.scheduler.orders(job.spec, attempt))
            request = Request(attempt.name, attempt.log, job.spec.machine, after=attempt.after)
            job_id = submit_once(ticket, request, self.scheduler, fresh=fresh)
            yield
        except SubmissionRefused as error:
            self.session.refuse(job, attempt, str(error))
        except SchedulerError:
            yield
        else:
            self.session.record_submission(job, attempt, job_id)


class Trainer:
    """What a running job writes: log lines and checkpoints, in a good or a bad order."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.name = Path(spec["cwd"]).name
        self._log = Path(spec["log"])
        self._save_dir = Path(spec["cwd"]) / "checkpoints"
        command = spec["command"]
        self.target = 0
        if "--train-iters" in command:
            self.target = int(command[command.index("--train-iters") + 1])
        self.iteration = tracked_iteration(self._save_dir) or 0
        if "--exit-on-missing-checkpoint" in command:
            start = self._save_dir / folder_name(self.iteration)
            assert json.loads((start / "metadata.json").read_text()) == {"whole": True}
        self._unfinished = False

    def log(self, text: str) -> None:
        with self._log.open("a") as file:
            file.write(text)

    def go_on(self, how: str) -> int | None:
        """Train to the next checkpoint; returns an iteration whose checkpoint is now complete."""
        if self._unfinished:
            return self._finish()
        if self.iteration >= self.target:
            return None
        self.iteration = min(self.target, self.iteration // 100 * 100 + 100)
        self.log(f" iteration {self.iteration:8d}/ {self.target} | lm loss: 2.5 |\n")
        folder = self._save_dir / folder_name(self.iteration)
        folder.mkdir(parents=True, exist_ok=True)
        self._unfinished = True
        if how == "whole":
            return self._finish()
        (folder / "metadata.json").write_text('{"who' if how == "torn" else '{"whole": true}')
        return None

    def _finish(self) -> int:
        folder = self._save_dir / folder_name(self.iteration)
        (folder / "metadata.json").write_text('{"whole": true}')
        (self._save_dir / TRACKER).write_text(str(self.iteration))
        self._unfinished = False
        return self.iteration


class Play(RuleBasedStateMachine):
    """One session, its trainers, its scheduler and a monitor that dies again and again."""

    composed: Composed
    fate: Fate

    @initialize(
        chain=st.integers(1, 2),
        most=st.sampled_from([None, None, 2]),
        every=st.sampled_from([0.0, 1e6]),
        together=st.booleans(),
    )
    def begin(self, chain: int, most: int | None, every: float, together: bool) -> None:
        self.folder = tempfile.TemporaryDirectory()
        experiment = self.composed.experiment
        changes = {
            "slurm": SlurmCluster(chain=chain, max_jobs=most, arrays=together),
            "monitoring": experiment.monitoring.model_copy(update={"save_progress_every_s": every}),
        }
        changed = self.composed._replace(experiment=experiment.model_copy(update=changes))
        self.path = create(changed, Path(self.folder.name), session_id="s1")
        self.scheduler = FakeScheduler()
        self.trainers: dict[str, Trainer] = {}
        self.complete: set[tuple[str, int]] = set()
        self.finished: set[str] = set()
        self.cancelled: dict[str, int] = {}
        self.dropped: set[str] = set()
        self.driver = Driver(self.path, self.scheduler)
        self.driver.round()

    # The monitor

    @rule()
    def look_and_act(self) -> None:
        self.driver.tick()

    @rule()
    def everything_in_its_time(self) -> None:
        self.driver.round()

    @precondition(lambda self: self.driver.work)
    @rule(which=st.integers(0, 9))
    def one_goes_on(self, which: int) -> None:
        self.driver.advance(which)

    @rule(step=st.integers(1, 12), torn=st.integers(0, 300))
    def kill(self, step: int, torn: int) -> None:
        journal = self.path / "events.jsonl"

        def live() -> None:
            self.driver.round()
            self.driver = Driver(self.path, self.scheduler)
            self.driver.round()

        self.fate.spares(live, until=step)
        self.driver = Driver(self.path, self.scheduler)

    @rule(how=st.sampled_from(["answer lost", "outlives"] * 4 + ["refused"]))
    def next_submission(self, how: str) -> None:
        self.scheduler.next_time = how
        if not self.fate.spares(self.driver.round, until=0):
            self.driver = Driver(self.path, self.scheduler)
        self.scheduler.next_time = None

    @rule(silent=st.booleans())
    def outage(self, silent: bool) -> None:
        self.scheduler.silent = silent

    # The jobs

    def alive(self) -> list[str]:
        return [job_id for job_id, job in self.scheduler.jobs.items() if job.is_alive]

    def turn(self, job_id: str, state: str) -> None:
        job = self.scheduler.jobs[job_id]
        before = self.scheduler.jobs.get(job.after or "")
        if state == "RUNNING" and job.state != "RUNNING":
            if before is not None and before.is_alive:
                return
            self.trainers[job_id] = Trainer(job.spec)
        job.state = state

    @rule(times=st.integers(1, 3))
    def all_goes_well(self, times: int) -> None:
        for _ in range(times):
            self.driver.round()
            for job_id in self.alive():
                self.train_whole(job_id)
            self.driver.round()

    def train_whole(self, job_id: str) -> None:
        self.turn(job_id, "RUNNING")
        if self.scheduler.jobs[job_id].state == "RUNNING":
            trainer = self.trainers[job_id]
            if saved := trainer.go_on("whole"):
                self.complete.add((trainer.name, saved))
            elif trainer.iteration >= trainer.target:
                self.turn(job_id, "COMPLETED")

    @precondition(lambda self: self.alive())
    @rule(which=st.integers(0, 5), how=st.sampled_from(["whole", "whole", "torn", "late"]))
    def train(self, which: int, how: str) -> None:
        job_id = self.alive()[which % len(self.alive())]
        self.turn(job_id, "RUNNING")
        if self.scheduler.jobs[job_id].state == "RUNNING":
            if saved := self.trainers[job_id].go_on(how):
                self.complete.add((self.trainers[job_id].name, saved))

    @precondition(lambda self: self.alive())
    @rule(which=st.integers(0, 5), text=st.sampled_from(["\n", " iteration  9", "noise\n", "é"]))
    def write(self, which: int, text: str) -> None:
        job_id = self.alive()[which % len(self.alive())]
        if self.scheduler.jobs[job_id].state == "RUNNING":
            self.trainers[job_id].log(text)

    @precondition(lambda self: self.alive())
    @rule(
        which=st.integers(0, 5),
        state=st.sampled_from(
            ["PENDING", "SUSPENDED", "NEW_IN_SLURM_99", "TIMEOUT", "NODE_FAIL"] * 3 + list(states.terminal_states())
        ),
    )
    def change(self, which: int, state: str) -> None:
        self.turn(self.alive()[which % len(self.alive())], state)

    # Requests

    @rule(names=st.sampled_from([("none",), ("extra",), ("tiny-cd100", "none"), ("tiny",)]))
    def request_cancel(self, names: tuple[str, ...]) -> None:
        inbox.put(self.path, inbox.CancelRequest(jobs=names, by="ann"))

    @rule(name=st.sampled_from(["extra", "other"]), command=st.sampled_from(["true", "false"]))
    def request_submit(self, name: str, command: str) -> None:
        spec = spec_of(command, directory=self.path / name, name=name, kind=Kind.COMMAND,
                       machine=SlurmCluster(arrays=True))
        inbox.put(self.path, inbox.SubmitRequest(jobs=(spec,), by="ann"))

    @rule(point=st.sampled_from([100, 200]), verb=st.sampled_from(["retry", "drop"]))
    def request_action(self, point: int, verb: Any) -> None:
        key = f"start-tiny-cd{point}--checkpoint_tiny_{point}--0"
        inbox.put(self.path, inbox.ActionRequest(key=key, verb=verb, by="ann"))
        if verb == "drop":
            self.dropped.add(f"tiny-cd{point}")

    @rule(fails=st.booleans())
    def pinning(self, fails: bool) -> None:
        self.driver.pin_fails = fails

    # What holds at any time

    @invariant()
    def nothing_is_submitted_twice(self) -> None:
        assert set(self.scheduler.submissions.values()) <= {1}

    @invariant()
    def the_directory_is_whole(self) -> None:
        session = Session.load(self.path)
        raw = (self.path / "events.jsonl").read_text().splitlines() if session.journal.entries else []
        keys = [json.loads(line)["key"] for line in raw]
        assert len(keys) == len(set(keys))
        submitted = set(self.scheduler.submissions)
        for name, job in session.jobs.items():
            assert [a.number for a in job.attempts] == list(range(1, len(job.attempts) + 1))
            assert [a.key for a in job.attempts] == [f"s1-{name}-a{a.number}" for a in job.attempts]
            assert {key for key in submitted if key.startswith(f"s1-{name}-a")} <= {
                a.key for a in job.attempts
            }
            for attempt in job.attempts:
                if attempt.job_id is not None:
                    assert self.scheduler.jobs[attempt.job_id].spec["key"] == attempt.key
            if job.launched and job.spec.branch:
                assert ("tiny", job.spec.branch.iteration) in self.complete
            assert not job.attempts or job.launched
            if name in self.finished:
                assert job.verdict is Verdict.FINISHED
            if job.verdict is Verdict.FINISHED:
                self.finished.add(name)
            if name in self.cancelled:
                assert job.cancel_requested == "ann"
                assert len(job.attempts) == self.cancelled[name]
            if job.cancel_requested:
                self.cancelled[name] = len(job.attempts)
        launched = [a.action.job for a in session.actions.values()]
        assert len(launched) == len(set(launched))

    # The end

    def teardown(self) -> None:
        if not hasattr(self, "driver"):
            return
        with self.folder:
            if sys.exc_info()[0] is None:
                self.let_it_end()

    def let_it_end(self) -> None:
        self.scheduler.silent = False
        self.driver.pin_fails = False
        for _ in range(60):
            self.driver.round()
            if self.driver.session.is_over:
                break
            for job_id in self.alive():
                self.train_whole(job_id)
        session = Session.load(self.path)
        assert session.is_over, {n: (j.state, j.verdict, j.reason) for n, j in session.jobs.items()}
        assert not self.alive()
        self.the_directory_is_whole()
        for name, job in session.jobs.items():
            kinds = Counter(e.event.kind for e in session.journal.entries if e.event.job == name and (e.event.kind=="job_given_up" or e.event.kind == "attempt_judged" and e.event.verdict != "continue"))
            if job.spec.branch and ("tiny", job.spec.branch.iteration) in self.complete:
                if not job.cancel_requested and name not in self.dropped and not (job.reason or "").startswith("could not be launched"):
                    assert job.attempts, job.reason


def test_whatever_happens_nothing_is_doubled_and_nothing_is_lost(
    composed: Composed, monkeypatch: pytest.MonkeyPatch
) -> None:
    Play.composed = composed
    Play.fate = Fate(monkeypatch)
    examples = int(os.environ.get("AUTOEXP_TEST_EXAMPLES", "60"))
    run_state_machine_as_test(
        Play,
        settings=settings(
            max_examples=examples,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )
