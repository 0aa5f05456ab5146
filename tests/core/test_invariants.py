"""A session under everything at once: nothing is doubled and nothing lost, whatever dies when."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import stateful as hs

from autoexp import acting, inbox, lease, states
from autoexp.backends.base import FoundCheckpoint
from autoexp.compose import Composed
from autoexp.errors import SchedulerError, SessionError, SubmissionRefused
from autoexp.experiment import Monitoring
from autoexp.jobs import Attempt, JobRecord, Kind, Verdict
from autoexp.machines import SlurmCluster
from autoexp.monitor import Monitor
from autoexp.rules.actions import Restart, Start
from autoexp.rules.records import ActionRecord, ActionStatus
from autoexp.schedulers.base import Request, Sighting, find_or_forbid, prepare, submit_once
from autoexp.session import Session
from tests.core.conftest import create, spec_of
from tests.core.test_arrays import FakeJob, FakeScheduler, Fate

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

    def tick(self) -> None:
        answers, self._answers = self._answers, {}
        self._start("ask", self._ask())
        inbox.take_on(self.session)
        self.monitor.look(answers)
        for action in self.session.pending_actions():
            self._start(action.key, self._perform(action))
        for name, job in self.session.jobs.items():
            if job.launched and not (job.is_over and job.unsubmitted is None):
                self._start(name, self._drive(job))
        self._start("cancel", self._cancel())

    def go_on(self, names: list[str]) -> None:
        for name in names:
            if next(self.work[name], "over") == "over":
                del self.work[name]

    def round(self) -> None:
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
        try:
            job = acting.begin(self.session, action)
            yield
            if isinstance(action.action, Restart):
                acting.done(self.session, action, acting.ask_restart(self.session, action))
                return
        except SessionError as error:
            acting.fail(self.session, action, str(error))
            return
        if self.scheduler.silent:  # the filesystem fails with it
            acting.fail(self.session, action, "stale file handle")
            return
        found = FoundCheckpoint(action.event.iteration, Path(action.event.path))
        job.spec.trainer.seed(found, Path(job.spec.save_dir))
        yield
        acting.complete(self.session, action, job)

    def _cancel(self) -> Work:
        jobs = [job for job in self.session.jobs.values() if job.is_ending]
        attempts = [a for job in jobs for a in job.open_attempts if a.job_id is not None]
        yield
        with suppress(SchedulerError):
            self.scheduler.cancel([self.session.ticket(attempt) for attempt in attempts])

    def _drive(self, job: JobRecord) -> Work:
        while not (job.is_over and job.unsubmitted is None):
            if job.may_be_replaced:
                yield
                acting.replaced(self.session, job, {})
            elif job.unsubmitted is not None and job.is_ending:
                yield from self._withdraw(job, job.unsubmitted)
            elif job.unsubmitted is not None:
                yield from self._submit(job, job.unsubmitted, fresh=False)
            elif attempt := self.session.begin_attempt(job):
                yield
                yield from self._submit(job, attempt, fresh=True)
                continue
            yield

    def _withdraw(self, job: JobRecord, attempt: Attempt) -> Work:
        ticket = self.session.submission_ticket(attempt)
        try:
            job_id = find_or_forbid(ticket, attempt, self.scheduler)
        except SchedulerError:
            yield
            return
        yield
        if job_id is None:
            self.session.withdraw(job, attempt)
        else:
            self.session.record_submission(job, attempt, job_id)

    def _submit(self, job: JobRecord, attempt: Attempt, *, fresh: bool) -> Work:
        ticket = self.session.ticket(attempt)
        request = Request(attempt.name, attempt.log, job.spec.machine, after=attempt.after)
        try:
            prepare(ticket, job.spec, attempt, self.scheduler.orders(job.spec, attempt))
            job_id = submit_once(ticket, request, self.scheduler, fresh=fresh)
        except SubmissionRefused as error:
            self.session.refuse(job, attempt, str(error))
        except SchedulerError:
            yield
        else:
            yield
            self.session.record_submission(job, attempt, job_id)


REQUESTS: tuple[inbox.Request, ...] = (
    *(inbox.CancelRequest(jobs=(name,), by="ann") for name in ("nobody", "b1", "tiny-cd100")),
    inbox.CancelRequest(by="ann"),
    *(
        inbox.ActionRequest(key=f"start-tiny-cd{n}--checkpoint_tiny_{n}--0", verb=verb, by="ann")
        for n in (100, 200)
        for verb in ("retry", "retry", "drop")
    ),
)
# A rule that ends an attempt and asks for the next one.
RUNNING_RESTARTS = {"again": {"to": ["RUNNING"], "actions": [{"restart": {}}]}}
# What a job survives comes more often than what ends it for good.
STATES = ("PENDING", "SUSPENDED", "NEW_IN_SLURM_99", "TIMEOUT", "NODE_FAIL") * 3
which = st.integers(0, 9)


class Play(hs.RuleBasedStateMachine):
    """One session, its trainers, its scheduler, and a monitor that dies again and again."""

    composed: Composed
    fate: Fate

    @hs.initialize(
        chain=st.integers(1, 2),
        most=st.sampled_from([None, 2]),
        rare=st.booleans(),
        rules=st.sampled_from([{}, RUNNING_RESTARTS]),
    )
    def begin(self, chain: int, most: int | None, rare: bool, rules: dict[str, Any]) -> None:
        self.fate.steps_left = 0
        self.folder = tempfile.TemporaryDirectory()
        old = self.composed.experiment
        watching = Monitoring(save_progress_every_s=1e6 * rare, state_events=rules)
        changes = {"slurm": SlurmCluster(chain=chain, max_jobs=most), "monitoring": watching}
        changed = self.composed._replace(experiment=old.model_copy(update=changes))
        self.path = create(changed, Path(self.folder.name), session_id="s1")
        self.scheduler = FakeScheduler()
        self.complete: set[tuple[str, int]] = set()
        self.settled: dict[str, tuple[Verdict | None, int]] = {}
        self.resume()
        self.all_goes_well(1)

    def let(self, act: Callable[[], object]) -> None:
        """Have the monitor do something; when it dies of that, another one takes over."""
        if not self.fate.spares(act):
            self.resume()

    def resume(self) -> None:
        self.driver = Driver(self.path, self.scheduler)

    @hs.rule()
    def restart(self) -> None:
        self.let(self.resume)

    @hs.rule()
    def tick(self) -> None:
        self.let(self.driver.tick)

    @hs.precondition(lambda self: self.driver.work)
    @hs.rule(which=which)
    def one_goes_on(self, which: int) -> None:
        waiting = list(self.driver.work)
        self.let(lambda: self.driver.go_on([waiting[which % len(waiting)]]))

    @hs.rule(step=st.integers(1, 30))
    def will_die(self, step: int) -> None:
        self.fate.steps_left = step

    @hs.rule(how=st.sampled_from(["answer lost", "outlives", "dies", "refused"]))
    def next_submission(self, how: str) -> None:
        self.scheduler.next_time = how

    @hs.rule(silent=st.booleans(), full=st.booleans())
    def trouble(self, silent: bool, full: bool) -> None:
        """The scheduler does not answer, or takes no more jobs, until all goes well again."""
        self.scheduler.silent, self.scheduler.full = silent, full
        self.let(self.driver.round)

    @hs.rule(request=st.sampled_from(REQUESTS))
    def ask(self, request: inbox.Request) -> None:
        self.let(lambda: inbox.put(self.path, request))

    @hs.rule(name=st.sampled_from(["b1", "b2"]), command=st.sampled_from(["true", "false"]))
    def add(self, name: str, command: str) -> None:
        spec = spec_of(command, name=name, directory=self.path / name, kind=Kind.COMMAND)
        self.ask(inbox.SubmitRequest(jobs=(spec,), by="ann"))

    @hs.rule(times=st.integers(1, 3))
    def all_goes_well(self, times: int) -> None:
        self.scheduler.silent = self.scheduler.full = False
        for _ in range(times):
            self.let(self.driver.round)
            for place in range(len(self.scheduler.alive)):
                self.train(place, None)
            self.let(self.driver.round)

    @hs.rule(which=which, metadata=st.sampled_from([None, None, '{"to', "{}"]))
    def train(self, which: int, metadata: str | None) -> None:
        job = self.running(which)
        if job is not None and job.train(metadata):
            self.complete.add((job.output.name, job.iteration))

    @hs.rule(which=which, state=st.sampled_from((*STATES, *states.terminal_states())))
    def change(self, which: int, state: str) -> None:
        job = self.running(which)
        if job is not None:
            job.state = state

    def running(self, which: int) -> FakeJob | None:
        """One of the jobs in the queue, which runs from now on if it may."""
        alive = self.scheduler.alive
        job = self.scheduler.jobs[alive[which % len(alive)]] if alive else None
        if job is None or job.after in alive:
            return None
        if job.state == "PENDING":
            job.start()
        job.state = "RUNNING"
        return job

    @hs.invariant()
    def everything_is_in_order(self) -> None:
        assert set(self.scheduler.submissions.values()) <= {1}
        session = Session.load(self.path)
        keys = [entry.event.key for entry in session.journal.entries]
        assert len(keys) == len(set(keys))
        intended = [a.key for job in session.jobs.values() for a in job.attempts]
        assert set(self.scheduler.submissions) <= set(intended)
        for name, job in session.jobs.items():
            numbers = range(1, len(job.attempts) + 1)
            assert [attempt.key for attempt in job.attempts] == [f"s1-{name}-a{n}" for n in numbers]
            for attempt in (a for a in job.attempts if a.job_id is not None):
                assert self.scheduler.jobs[str(attempt.job_id)].spec["key"] == attempt.key
            assert job.launched or not job.attempts
            for number in job.restarted:
                alone = [e.event.key for e in session.journal.entries if e.event.job == name]
                assert alone.count(f"restart/{name}/a{number}") == 1
            if job.launched and job.spec.branch:
                assert ("tiny", job.spec.branch.iteration) in self.complete
            now = (job.verdict, len(job.attempts))
            assert self.settled.get(name, now) == now
            if job.verdict is Verdict.FINISHED or (job.cancel_requested and job.is_over):
                self.settled[name] = now

    def teardown(self) -> None:
        if sys.exc_info()[0] is None and hasattr(self, "driver"):
            self.comes_to_its_end()
        self.folder.cleanup()

    def comes_to_its_end(self) -> None:
        self.fate.steps_left, self.scheduler.next_time = 0, None
        for _ in range(60):
            if not self.driver.session.is_over:
                self.all_goes_well(1)
        self.everything_is_in_order()
        session = Session.load(self.path)
        assert session.is_over, {n: (j.state, j.verdict, j.reason) for n, j in session.jobs.items()}
        assert not self.scheduler.alive and sorted(session.meta.jobs) == sorted(session.jobs)
        for name, job in session.jobs.items():
            assert "not submitted" not in str(job.reason) or all(a.verdict for a in job.attempts)
            branch = job.spec.branch
            if branch and ("tiny", branch.iteration) in self.complete and not job.attempts:
                starts = [a for a in session.actions.values() if isinstance(a.action, Start)]
                status = [a.status for a in starts if a.action.job == name]
                assert job.cancel_requested or status == [ActionStatus.FAILED]


@pytest.fixture(autouse=True)
def _world(composed: Composed, monkeypatch: pytest.MonkeyPatch) -> None:
    Play.composed, Play.fate = composed, Fate(monkeypatch)


def test_whatever_happens_nothing_is_doubled_and_nothing_is_lost() -> None:
    # Hypothesis varies what it has played after ten plays: ten at a time are all different.
    ten_plays = settings(
        max_examples=10,
        stateful_step_count=40,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    for number in range(int(os.environ.get("AUTOEXP_TEST_PLAYS", "60")) // 10):
        hs.run_state_machine_as_test(seed(number)(Play), settings=ten_plays)
