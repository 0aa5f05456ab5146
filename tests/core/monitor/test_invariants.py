"""A session under everything at once: nothing is doubled and nothing lost, whatever dies when."""

import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import hypothesis.strategies as st
import pytest
from hypothesis import stateful as hs

from autoexp import states
from autoexp.config.compose import Composed
from autoexp.config.experiment import Monitoring
from autoexp.jobs.record import JobRecord
from autoexp.resources.machines import SlurmCluster
from autoexp.retention.policy import Retention
from autoexp.rules.actions import Start
from autoexp.session.action_records import ActionStatus
from autoexp.session.inbox import ActionRequest, CancelRequest, Request, SubmitRequest, enqueue
from autoexp.session.session import Session
from autoexp.states import Kind, Verdict
from bench.world import sessions
from tests.builders import create, spec_of
from tests.core.monitor import playing
from tests.core.monitor.playing import which
from tests.fakes.scheduler import FakeScheduler, Fate, Killed

REQUESTS: tuple[Request, ...] = (
    *(CancelRequest(jobs=(name,), by="ann") for name in ("nobody", "b1", "tiny-cd100")),
    CancelRequest(by="ann"),
    *(
        ActionRequest(key=f"start-tiny-cd{n}--checkpoint_tiny_{n}--0", verb=verb, by="ann")
        for n in (100, 200)
        for verb in ("retry", "retry", "drop")
    ),
)
# A rule that ends an attempt and asks for the next one.
RUNNING_RESTARTS = {"again": {"to": ["RUNNING"], "actions": [{"restart": {}}]}}
LONG = "b" * 160
"""The longest name of a job."""
PATTERNS = (
    *(r"(?P<n>[-+0-9.,eEKnaif]+)", r"iteration\s+(?P<n>\S*)", r"loss: ?(?P<n>.*)", r"(?P<n>x)?y"),
    *(r"(?P<n>)z", r"\x00(?P<n>.)", r"(?P<n>\d+)\D{0,9}(?P<m>\d*)", r".*(?P<n>..)$"),
)
TESTS: tuple[dict[str, Any], ...] = (
    {"spike": {"times": 1.5, "over": 2, "logged": 1}},
    {"throughput_below": {"share": 0.5, "over": 2, "logged": 1}},
    {"not_a_number": {"logged": 1}},
    {"loss_above": {"value": 1.0, "logged": 1}},
    {"off_schedule": {"logged": 1}},
)
WORDS = (
    *(b"nan", b"-inf", b"1,000", b"3.2e+4", b"28.2K", b"9" * 5000, b"1e999", b"0x1F", b"1_000"),
    *(b"loss: nan", b"lm loss: 2,5 |", b" iteration 1,000/ 300 | lm loss: inf |", b"iteration"),
    *(b" iteration      120/     300 | lm loss: nan | learning rate: inf |", b"xy", b"y", b"z"),
    *(b"\x1b[31m", b"\x1b[2K\x1b[1G", b"\x1b]0;title\x07", b"\r", b"\n", b"\r\n", b"\0" * 300),
    *(b"\xff\xfe", b"\xc3", "\u2028\u0085".encode(), b"a" * 3000, b"m" * 1_100_000),
)
scribbles = st.lists(st.one_of(st.sampled_from(WORDS), st.binary(max_size=40)), max_size=8)


@st.composite
def user_rules(draw: st.DrawFn) -> dict[str, Any]:
    """Rules of a user's own about what stands in logs; what they do hurts no job."""
    actions = [{"log": {"message": "{line} {n}"}}, {"write_file": {"path": "seen", "line": "{n}"}}]
    logs = {
        f"r{number}": {
            "pattern": pattern,
            "every": draw(st.booleans()),
            "actions": [draw(st.sampled_from(actions))],
        }
        for number, pattern in enumerate(draw(st.lists(st.sampled_from(PATTERNS), max_size=2)))
    }
    metrics = draw(
        st.sampled_from([{}, *({"m": {**test, "actions": [{"log": {}}]}} for test in TESTS)])
    )
    return {"log_events": logs, "metric_events": metrics}


# What a job survives comes more often than what ends it for good.
STATES = ("PENDING", "SUSPENDED", "NEW_IN_SLURM_99", "TIMEOUT", "NODE_FAIL") * 3
_MOST_ASKED = 6


class Play(playing.Play):
    """One session, its trainers, its scheduler, and a monitor that dies again and again."""

    composed: ClassVar[Composed]

    @hs.initialize(
        chain=st.integers(1, 2),
        most=st.sampled_from([None, 2]),
        rare=st.booleans(),
        restarts=st.sampled_from([{}, RUNNING_RESTARTS]),
        rules=user_rules(),
        keep=st.sampled_from([None, {"last": 1}, "branch_points"]),
    )
    def begin(
        self,
        chain: int,
        most: int | None,
        rare: bool,
        restarts: dict[str, Any],
        rules: dict[str, Any],
        keep: Any,
    ) -> None:
        self.fate.steps_left = 0
        self.folder = tempfile.TemporaryDirectory()
        old = self.composed.experiment
        every = 1e6 * rare
        watching = Monitoring(save_progress_every_s=every, state_events=restarts, **rules)
        changes = {
            "slurm": SlurmCluster(chain=chain, max_jobs=most),
            "monitoring": watching,
            "retention": Retention.model_validate({"keep": [keep]}) if keep else None,
        }
        changed = self.composed._replace(experiment=old.model_copy(update=changes))
        self.path = create(changed, Path(self.folder.name), session_id="s1")
        self.scheduler = FakeScheduler()
        self.complete: set[tuple[str, int]] = set()
        self.settled: dict[str, tuple[Verdict | None, int]] = {}
        self.hidden: dict[Path, Path] = {}
        self.asked = 0
        self.resume()
        self.all_goes_well(1)

    @hs.rule(how=st.sampled_from(["answer lost", "outlives", "dies", "refused"]))
    def next_submission(self, how: str) -> None:
        self.scheduler.next_time = how

    @hs.rule(phases=st.integers(1, 20))
    def a_child_raises(self, phases: int) -> None:
        self.driver.fails_after(phases)

    @hs.rule(which=which, pieces=scribbles)
    def scribble(self, which: int, pieces: list[bytes]) -> None:
        """A trainer, or what it runs, writes whatever it likes."""
        job = self.running(which)
        if job is not None:
            with job.log.open("ab") as log:
                log.write(b"".join(pieces))

    @hs.rule(which=which)
    def hide_log(self, which: int) -> None:
        """The log of a job cannot be read, until all goes well again."""
        job = self.running(which)
        if job is not None and job.log.is_file() and job.log not in self.hidden.values():
            shown, job.log = job.log, job.log.with_suffix(".hidden")
            shown.rename(job.log)
            shown.mkdir()
            self.hidden[shown] = job.log

    def show_logs(self) -> None:
        for shown, hidden in self.hidden.items():
            shown.rmdir()
            hidden.rename(shown)
            for job in self.scheduler.jobs.values():
                job.log = shown if job.log == hidden else job.log
        self.hidden.clear()

    @hs.rule(silent=st.booleans(), full=st.booleans())
    def trouble(self, silent: bool, full: bool) -> None:
        """The scheduler does not answer, or takes no more jobs, until all goes well again."""
        self.scheduler.silent, self.scheduler.full = silent, full
        self.let(self.driver.round)

    @hs.rule(request=st.sampled_from(REQUESTS))
    def ask(self, request: Request) -> None:
        self.let(lambda: enqueue(self.path, request))

    @hs.rule(name=st.sampled_from(["b1", "b2", LONG]), command=st.sampled_from(["true", "false"]))
    def add(self, name: str, command: str) -> None:
        spec = spec_of(command, name=name, directory=self.path / name, kind=Kind.COMMAND)
        self.ask(SubmitRequest(jobs=(spec,), by="ann"))

    @hs.precondition(lambda self: self.asked < _MOST_ASKED)
    @hs.rule(count=st.integers(1, 3))
    def others_add_meanwhile(self, count: int) -> None:
        """Others ask for jobs while the monitor looks; a kill may be theirs."""
        names = [f"t{self.asked + number}" for number in range(count)]
        self.asked += count

        def ask() -> None:
            for name in names:
                spec = spec_of("true", name=name, directory=self.path / name, kind=Kind.COMMAND)
                with suppress(Killed):
                    enqueue(self.path, SubmitRequest(jobs=(spec,), by="bob"))

        other = threading.Thread(target=ask)
        other.start()
        try:
            self.let(self.driver.round)
        finally:
            other.join()

    @hs.rule(times=st.integers(1, 3))
    def all_goes_well(self, times: int) -> None:
        self.scheduler.silent = self.scheduler.full = False
        self.show_logs()
        for _ in range(times):
            self.let(self.driver.round)
            for place in range(len(self.scheduler.alive)):
                self.train(place, None)
            self.let(self.driver.round)

    @hs.rule(which=which, metadata=st.sampled_from([None, None, '{"to', "{}"]))
    def train(self, which: int, metadata: str | None) -> None:
        job = self.running(which)
        if job is not None and job.train(metadata):
            known = Session.load(self.path).jobs[job.output.name]
            # A queued attempt whose cancellation was late may save after its job's verdict.
            if known.verdict is None:
                self.complete.add((job.output.name, job.iteration))

    @hs.rule(which=which)
    def lies(self, which: int) -> None:
        job = self.running(which)
        if job is not None and job.target:
            job.lie()

    @hs.rule(which=which, state=st.sampled_from((*STATES, *states.terminal_states())))
    def change(self, which: int, state: str) -> None:
        job = self.running(which)
        if job is not None:
            job.state = state

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
            assert [attempt.key for attempt in job.attempts] == [
                session.meta.key(name, n) for n in numbers
            ]
            for attempt in (a for a in job.attempts if a.job_id is not None):
                assert self.scheduler.jobs[str(attempt.job_id)].spec["key"] == attempt.key
            assert job.launched or not job.attempts
            self.nothing_is_deleted_that_is_needed(session, job)
            for number in job.restarted:
                alone = [e.event.key for e in session.journal.entries if e.event.job == name]
                assert alone.count(f"restart/{name}/a{number}") == 1
            if job.launched and job.spec.branch:
                assert ("tiny", job.spec.branch.iteration) in self.complete
            target = job.spec.target_iteration
            if job.verdict is Verdict.FINISHED and target is not None:
                saved = job.spec.trainer.checkpoints(Path(job.spec.save_dir)).complete
                assert job.ending is not None or target in [found.iteration for found in saved]
            now = (job.verdict, len(job.attempts))
            assert self.settled.get(name, now) == now
            if job.verdict is Verdict.FINISHED or (job.cancel_requested and job.is_over):
                self.settled[name] = now

    def nothing_is_deleted_that_is_needed(self, session: Session, job: JobRecord) -> None:
        """The newest checkpoint lies there, and what a branch that has not started begins from."""
        name, folder = job.spec.name, Path(job.spec.save_dir)
        wanted = {max(job.checkpoints)} if job.checkpoints else set()
        for other in session.jobs.values():
            if other.spec.parent == name and not (other.launched or other.was_cancelled):
                wanted |= {other.spec.starts_at} & {at for j, at in self.complete if j == name}
        gone = {at for at in wanted if not (folder / sessions.folder_name(at or 0)).is_dir()}
        assert not gone & {*job.deleted, *job.checkpoints}

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
    playing.play(Play)
