"""A session under everything at once: nothing is doubled and nothing lost, whatever dies when."""

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
from hypothesis import HealthCheck, Phase, seed, settings
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
from autoexp.rules import ActionRecord, ActionStatus
from autoexp.schedulers.base import Request, Sighting, prepare, submit_once
from autoexp.session import Session
from tests.core.conftest import spec_of
from tests.core.test_arrays import FakeScheduler, Fate

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
        inbox.take_on(self.session)
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

    def __init__(self, job_id: str, spec: dict[str, Any]) -> None:
        self.job_id = job_id
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


REQUESTS: tuple[inbox.Request, ...] = (
    *(inbox.CancelRequest(jobs=(name,), by="ann") for name in ("nobody", "b1", "tiny-cd100")),
    inbox.CancelRequest(by="ann"),
    *(
        inbox.ActionRequest(key=f"start-tiny-cd{n}--checkpoint_tiny_{n}--0", verb=verb, by="ann")
        for n in (100, 200)
        for verb in ("retry", "retry", "drop")
    ),
)
# States that a job survives come more often than those that end it for good.
STATES = ("PENDING", "SUSPENDED", "NEW_IN_SLURM_99", "TIMEOUT", "NODE_FAIL") * 3
which = st.integers(0, 9)


class Play(hs.RuleBasedStateMachine):
    """One session, its trainers, its scheduler, and a monitor that dies again and again."""

    composed: Composed
    fate: Fate

    @hs.initialize(chain=st.integers(1, 2), most=st.sampled_from([None, 2]), rare=st.booleans())
    def begin(self, chain: int, most: int | None, rare: bool) -> None:
        self.folder = tempfile.TemporaryDirectory()
        old = self.composed.experiment
        every = 1e6 if rare else 0.0
        changes = {
            "slurm": SlurmCluster(chain=chain, max_jobs=most, arrays=True),
            "monitoring": old.monitoring.model_copy(update={"save_progress_every_s": every}),
        }
        changed = self.composed._replace(experiment=old.model_copy(update=changes))
        self.path = create(changed, Path(self.folder.name), session_id="s1")
        self.scheduler = FakeScheduler()
        self.trainers: dict[str, Trainer] = {}
        self.complete: set[tuple[str, int]] = set()
        self.settled: dict[str, tuple[Verdict | None, int]] = {}
        self.fate.steps_left = 0
        self.resume()
        self.all_goes_well(1)

    # The monitor

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

    @hs.rule(how=st.sampled_from(["answer lost", "outlives", "dies"] * 2 + ["refused"]))
    def next_submission(self, how: str) -> None:
        self.scheduler.next_time = how

    @hs.rule(silent=st.booleans(), full=st.booleans())
    def trouble(self, silent: bool, full: bool) -> None:
        """The scheduler does not answer, or takes no more jobs, until all goes well again."""
        self.scheduler.silent, self.scheduler.full = silent, full
        self.let(self.driver.round)

    @hs.rule(request=st.sampled_from(REQUESTS))
    def ask(self, request: inbox.Request) -> None:
        inbox.put(self.path, request)

    @hs.rule(name=st.sampled_from(["b1", "b2"]), command=st.sampled_from(["true", "false"]))
    def add(self, name: str, command: str) -> None:
        facts = {"kind": Kind.COMMAND, "machine": SlurmCluster(arrays=True)}
        spec = spec_of(command, name=name, directory=self.path / "output" / name, **facts)
        inbox.put(self.path, inbox.SubmitRequest(jobs=(spec,), by="ann"))

    # The jobs

    @hs.rule(times=st.integers(1, 3))
    def all_goes_well(self, times: int) -> None:
        self.scheduler.silent = self.scheduler.full = False
        for _ in range(times):
            self.let(self.driver.round)
            for place in range(len(self.alive())):
                self.train(place, None)
            self.let(self.driver.round)

    @hs.rule(which=which, metadata=st.sampled_from([None, None, "", '{"to', "{}"]))
    def train(self, which: int, metadata: str | None) -> None:
        trainer = self.running(which)
        if trainer is None:
            return
        saved = trainer.train(metadata)
        if saved is not None:
            self.complete.add((trainer.job, saved))
        elif trainer.iteration >= trainer.target and not trainer.unfinished:
            self.scheduler.jobs[trainer.job_id].state = "COMPLETED"

    @hs.rule(which=which, text=st.sampled_from(["\n", " iteration  9", "noise\n", "é"]))
    def log(self, which: int, text: str) -> None:
        trainer = self.running(which)
        if trainer is not None:
            trainer.write(text)

    @hs.rule(which=which, state=st.sampled_from((*STATES, *states.terminal_states())))
    def change(self, which: int, state: str) -> None:
        trainer = self.running(which)
        if trainer is not None:
            self.scheduler.jobs[trainer.job_id].state = state

    def alive(self) -> list[str]:
        return [job_id for job_id, job in self.scheduler.jobs.items() if job.is_alive]

    def running(self, which: int) -> Trainer | None:
        """One of the jobs in the queue, which runs from now on if it may."""
        alive = self.alive()
        job_id = alive[which % len(alive)] if alive else ""
        if not alive or self.scheduler.jobs[job_id].after in alive:
            return None
        job = self.scheduler.jobs[job_id]
        if job.state == "PENDING":
            self.trainers[job_id] = Trainer(job_id, job.spec)
        job.state = "RUNNING"
        return self.trainers[job_id]

    # What holds at any time

    @hs.invariant()
    def each_attempt_was_submitted_once(self) -> None:
        assert set(self.scheduler.submissions.values()) <= {1}

    @hs.invariant()
    def the_directory_is_right(self) -> None:
        session = Session.load(self.path)
        keys = [entry.event.key for entry in session.journal.entries]
        assert len(keys) == len(set(keys))
        for name, job in session.jobs.items():
            expected = [f"s1-{name}-a{number + 1}" for number in range(len(job.attempts))]
            assert [attempt.key for attempt in job.attempts] == expected
            accepted = {key for key in self.scheduler.submissions if key.startswith(f"s1-{name}-a")}
            assert accepted <= set(expected)
            for attempt in (a for a in job.attempts if a.job_id is not None):
                assert self.scheduler.jobs[str(attempt.job_id)].spec["key"] == attempt.key
            assert job.launched or not job.attempts
            if job.launched and job.spec.branch:
                assert ("tiny", job.spec.branch.iteration) in self.complete
            self.what_is_settled_stays(name, job)

    def what_is_settled_stays(self, name: str, job: JobRecord) -> None:
        """Finished jobs stay finished, and cancelled ones get no attempt any more."""
        verdict, attempts = self.settled.get(name, (job.verdict, len(job.attempts)))
        assert (job.verdict, len(job.attempts)) == (verdict, attempts)
        if job.verdict is Verdict.FINISHED or (job.cancel_requested and job.is_over):
            self.settled[name] = (job.verdict, len(job.attempts))

    # The end

    def teardown(self) -> None:
        if sys.exc_info()[0] is None and hasattr(self, "driver"):
            self.let_it_end()
        self.folder.cleanup()

    def let_it_end(self) -> None:
        self.fate.steps_left, self.scheduler.next_time = 0, None
        for _ in range(60):
            if not self.driver.session.is_over:
                self.all_goes_well(1)
        session = Session.load(self.path)
        self.the_directory_is_right()
        assert session.is_over, {n: (j.state, j.verdict, j.reason) for n, j in session.jobs.items()}
        assert not self.alive()
        assert sorted(session.meta.jobs) == sorted(session.jobs)
        for name, job in session.jobs.items():
            branch = job.spec.branch
            if branch and ("tiny", branch.iteration) in self.complete and not job.attempts:
                status = [a.status for a in session.actions.values() if a.action.job == name]
                assert job.cancel_requested or status == [ActionStatus.FAILED]


def test_whatever_happens_nothing_is_doubled_and_nothing_is_lost(
    composed: Composed, monkeypatch: pytest.MonkeyPatch
) -> None:
    Play.composed, Play.fate = composed, Fate(monkeypatch)
    # Hypothesis varies what it has played after ten plays: ten at a time are all different.
    ten_plays = settings(
        max_examples=10,
        stateful_step_count=40,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    for number in range(int(os.environ.get("AUTOEXP_TEST_PLAYS", "60")) // 10):
        hs.run_state_machine_as_test(seed(number)(Play), settings=ten_plays)
