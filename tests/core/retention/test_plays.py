"""Whatever is asked for and whatever dies when: what a later action needs is never deleted."""

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import hypothesis.strategies as st
import pytest
from hypothesis import stateful as hs

from autoexp.backends.protocol import FoundCheckpoint
from autoexp.config.compose import Composed, compose
from autoexp.config.cooldowns import Cooldown, Merge
from autoexp.dotted import setting
from autoexp.jobs.record import JobRecord
from autoexp.jobs.spec import JobSpec
from autoexp.model import now
from autoexp.operations.on_request.branch import cooldown_of
from autoexp.planning.plan import make_plan
from autoexp.retention.policy import Retention
from autoexp.rules.actions import Delete, Keep, Launch, RunCommand, Start
from autoexp.rules.events import CheckpointComplete
from autoexp.session.action_records import ActionRecord, ActionStatus
from autoexp.session.inbox import (
    ActionRequest,
    CancelRequest,
    Request,
    RetryRequest,
    SaveRequest,
    SubmitRequest,
    _read,
    _waiting,
    enqueue,
)
from autoexp.session.session import Session
from autoexp.states import Kind, Verdict
from bench import simulate
from bench.world import sessions
from tests.builders import attempt_of, create, spec_of
from tests.core.monitor import playing
from tests.core.monitor.playing import which
from tests.fakes.scheduler import FakeJob, FakeScheduler, Fate

Place = tuple[str, int]
HAND = "hand"
"""The job that was started by hand."""
LAST, EVERY = 600, 100
STAGES: dict[str, Any] = {
    "convert": {
        "command": ["convert", "{sibling.stable.checkpoint_path}/model"],
        "after": {"stable": {"checkpoint": 300}},
    },
    "score": {
        "kind": "evaluate",
        "command": ["score", "--load={sibling.stable.checkpoint_path}"],
        "after": {"stable": {"checkpoint": 200}},
    },
    "hub": {
        "kind": "upload",
        "command": ["rclone", "copy", "{sibling.stable.save_dir}", "s3:lab"],
        "after": {"stable": {"checkpoint": 100}},
    },
}
RULES: dict[str, Any] = {
    "log_events": {
        "bad": {
            "substring": "it is wrong",
            "every": True,
            "actions": [{"restart": {"roll_back": True}}],
        }
    },
    "checkpoint_events": {
        "look": {
            "every": 200,
            "actions": [
                {
                    "launch": {
                        "command": ["eval", "{checkpoint_path}"],
                        "name": "{job.name}-eval{checkpoint_iteration}",
                    }
                }
            ],
        },
        "ship": {"at": [300], "actions": [{"run_command": {"run": ["ship", "{checkpoint_path}"]}}]},
    },
}
points = st.lists(st.integers(1, 5).map(lambda n: EVERY * n), min_size=1, max_size=3, unique=True)
keeps = st.lists(
    st.one_of(
        st.sampled_from(["branch_points", "evaluated"]),
        st.builds(lambda n: {"last": n}, st.integers(1, 2)),
        st.builds(lambda n: {"every": EVERY * n}, st.integers(2, 4)),
    ),
    min_size=1,
    max_size=2,
)
deleted_in_all: list[int] = []


class Play(playing.Play):
    """A session that deletes, with everything that may need a checkpoint in it."""

    composed: ClassVar[Composed]

    @hs.initialize(
        keep=keeps,
        at=points,
        then=st.booleans(),
        merge=st.sampled_from([None, 300, 500]),
        stages=st.sets(st.sampled_from(sorted(STAGES))),
        rules=st.sets(st.sampled_from(sorted(RULES))),
        by_hand=st.booleans(),
        before=st.booleans(),
    )
    def begin(
        self,
        keep: list[Any],
        at: list[int],
        then: bool,
        merge: int | None,
        stages: set[str],
        rules: set[str],
        by_hand: bool,
        before: bool,
    ) -> None:
        self.fate.steps_left = 0
        self.folder = tempfile.TemporaryDirectory(dir=simulate.memory())
        old = self.composed.experiment
        decay = {"decay": {"iterations": 150}}
        cooldowns = {"at": at, "name": "c", **decay, "then": [decay] if then else []}
        none = {} if merge is None else {"at": [merge], "last": 300}
        changes = {
            "cooldowns": (Cooldown.model_validate(cooldowns),),
            "merges": (Merge.model_validate(none),) if none else (),
            "stages": {name: old.stages[name] for name in sorted(stages)},
            "monitoring": old.monitoring.model_copy(
                update={kind: {} for kind in RULES if kind not in rules}
            ),
            "retention": Retention.model_validate({"keep": keep}),
        }
        changed = self.composed._replace(experiment=old.model_copy(update=changes))
        self.path = create(changed, Path(self.folder.name), session_id="s1")
        self.scheduler = FakeScheduler()
        self.gone: set[Place] = set()
        self.cancelled: set[str] = set()
        """Jobs that somebody has cancelled: their checkpoints may go, whatever comes then."""
        self.read: dict[str, set[Path]] = {}
        """What an attempt that reads checkpoints has begun to read."""
        self.asked = 0
        if before:
            sessions.save(Path(Session.load(self.path).jobs["tiny"].spec.save_dir), 50)
        self.resume()
        if by_hand:
            self.adopt()
        self.all_goes_well(1)

    def adopt(self) -> None:
        """Somebody gives the session a job that runs already, and wants a cooldown of it."""
        experiment = self.composed.experiment
        own = experiment.model_copy(
            update={
                "project": experiment.project.model_copy(update={"name": HAND}),
                "stages": {},
                "cooldowns": (Cooldown.model_validate({"at": [200], "decay": {"iterations": 50}}),),
            }
        )
        folder = Path(self.folder.name) / "by-hand"
        plan = make_plan(own, self.path / "output", folder / HAND / "checkpoints")
        (folder / HAND / "checkpoints").mkdir(parents=True)
        log = folder / "job.log"
        key = f"s1-{HAND}-a1"
        words = ["train", "--train-iters", str(LAST)]
        spec = {"key": key, "log": str(log), "cwd": str(folder / HAND), "command": words}
        (folder / "spec.json").write_text(json.dumps(spec))
        self.scheduler.jobs["7"] = FakeJob("by-hand", folder, None)
        attempt = attempt_of(
            key, str(log), name="by-hand", job_id="7", state="PENDING", submitted_at=now()
        ).model_copy(update={"first_iteration": 0})
        enqueue(self.path, SubmitRequest(jobs=plan.jobs, attempt=attempt, by="ann"))

    # What people ask for

    def ask(self, request: Request) -> None:
        self.let(lambda: enqueue(self.path, request))

    @hs.rule(which=which)
    def cancel(self, which: int) -> None:
        names = list(self.driver.session.jobs)
        self.cancelled.add(names[which % len(names)])
        self.ask(CancelRequest(jobs=(names[which % len(names)],), by="ann"))

    @hs.rule(which=which, all_of_them=st.booleans())
    def retry(self, which: int, all_of_them: bool) -> None:
        failed = [n for n, j in self.driver.session.jobs.items() if j.verdict is Verdict.FAILED]
        if failed:
            names = () if all_of_them else (failed[which % len(failed)],)
            self.ask(RetryRequest(jobs=names, by="ann"))

    @hs.rule(which=which, verb=st.sampled_from(["retry", "drop"]))
    def queue(self, which: int, verb: Any) -> None:
        keys = [key for key, a in self.driver.session.actions.items() if a.event.job]
        if keys:
            self.ask(ActionRequest(key=keys[which % len(keys)], verb=verb, by="ann"))

    @hs.rule(cooldown=st.booleans())
    def save_now(self, cooldown: bool) -> None:
        self.asked += 1
        wanted = cooldown_of(["iterations=50"], f"now{self.asked}") if cooldown else None
        self.ask(SaveRequest(job="tiny", request=f"{self.asked:08x}", cooldown=wanted, by="ann"))

    @hs.rule(which=which, what=st.sampled_from(["cooldown", "evaluate", "upload", "await"]))
    def add(self, which: int, what: str) -> None:
        """Somebody submits a job that needs a checkpoint that lies there."""
        session = Session.load(self.path)
        there = [event for event in session.checkpoints() if event.job == "tiny"]
        # What is about to be deleted is asked for more often than all else.
        asked = [a.event for a in session.pending_actions() if isinstance(a.action, Delete)]
        there = [event for event in there if event in asked] or there
        if not there or self.asked > 8:
            return
        self.asked += 1
        at, folder = there[which % len(there)].iteration, there[which % len(there)].path
        name = f"late{self.asked}"
        spec = spec_of("eval", folder, name=name, directory=self.path / "output" / name)
        if what == "cooldown":
            spec = self.cooldown_at(at, name)
        elif what == "upload":
            words = ("rclone", "copy", str(Path(folder).parent), "s3:lab")
            spec = spec.model_copy(update={"command": words, "kind": Kind.UPLOAD})
        elif what == "await":
            awaited = ({"job": "tiny", "checkpoint": at}, {"job": "tiny"})
            spec = JobSpec.model_validate(
                {**spec.model_dump(), "awaits": awaited, "kind": Kind.COMMAND}
            )
        else:
            spec = spec.model_copy(update={"kind": Kind.EVALUATE})
        self.ask(SubmitRequest(jobs=(spec,), by="ann"))

    def cooldown_at(self, at: int, name: str) -> JobSpec:
        wanted = Cooldown.model_validate({"at": [at], "name": name, "decay": {"iterations": 50}})
        changes = {"cooldowns": (wanted,), "stages": {}, "merges": ()}
        own = self.composed.experiment.model_copy(update=changes)
        return make_plan(own, self.path / "output").jobs[1]

    # What jobs do

    @hs.rule(how=st.sampled_from(["answer lost", "dies", "refused"]))
    def next_submission(self, how: str) -> None:
        self.scheduler.next_time = how

    @hs.rule()
    def trouble(self) -> None:
        """The scheduler does not answer, and nothing can be copied, until all goes well again."""
        self.scheduler.silent = True
        self.let(self.driver.round)

    @hs.rule(times=st.integers(1, 3))
    def all_goes_well(self, times: int) -> None:
        self.scheduler.silent = False
        for _ in range(times):
            self.let(self.driver.round)
            for place in range(len(self.scheduler.alive)):
                self.train(place)
            self.let(self.driver.round)

    @hs.rule(which=which)
    def train(self, which: int) -> None:
        job = self.running(which)
        if job is None or self.reads(job):
            return
        if job.iteration:
            assert (job.saves / sessions.folder_name(job.iteration)).is_dir(), "it goes on from it"
        job.train()

    def reads(self, job: FakeJob) -> bool:
        """Have a job that reads checkpoints find them; True while it goes on reading."""
        words, key = job.spec["command"], job.spec["key"]
        if words[0] not in ("convert", "score", "eval", "rclone"):
            return False
        session = Session.load(self.path)
        named = {Path(found) for word in words for found in re.findall(r"/[^\s=]*", word)}
        # What a roll back has set aside is another matter.
        known = {Path(e.path) for e in session.journal.checkpoints() if session.is_valid(e)}
        is_new = key not in self.read
        if is_new:
            below = {f for f in known if f.parent in named and f.is_dir()}
            self.read[key] = {f for f in known if f in named or named & {f / "model"}} | below
        lost = {folder for folder in self.read[key] & known if not folder.is_dir()}
        assert not lost or job.output.name in self.cancelled, f"{job.output.name} reads {lost}"
        return is_new

    @hs.rule(which=which, state=st.sampled_from(["FAILED", "NODE_FAIL", "TIMEOUT", "CANCELLED"]))
    def ends(self, which: int, state: str) -> None:
        job = self.running(which)
        if job is not None:
            job.state = state

    @hs.rule(which=which)
    def goes_wrong(self, which: int) -> None:
        job = self.running(which)
        if job is not None:
            with job.log.open("a") as log:
                log.write("it is wrong\n")

    # What has to hold

    @hs.invariant()
    def nothing_that_is_needed_is_deleted(self) -> None:
        session = Session.load(self.path)
        deleted = {(name, at) for name, job in session.jobs.items() for at in job.deleted}
        new, self.gone = deleted - self.gone, deleted
        deleted_in_all.append(len(new))
        needs = dict(self.needs(session)) if new else {}
        assert not new & set(needs), {place: needs[place] for place in new & set(needs)}
        for name, job in session.jobs.items():
            came_too_late = name in self.cancelled or job.spec.parent in self.cancelled
            assert came_too_late or "by `retention`" not in str(job.reason), job.reason
        for action in session.actions.values():
            self.it_found_its_checkpoint(session, action)

    def it_found_its_checkpoint(self, session: Session, action: ActionRecord) -> None:
        why, job = str(action.reason), session.jobs.get(action.event.job)
        if action.status is not ActionStatus.FAILED or job is None:
            return
        if isinstance(action.action, Start | Keep) and session.is_valid(action.event):
            assert action.action.job in self.cancelled or "No such file" not in why, why
        at = re.search(r"no checkpoint at or before iteration (\d+)", why)
        # A second roll back, to before where the last one led, may find nothing left.
        if at is not None and not job.roll_backs:
            assert not [x for x in job.deleted if x <= int(at.group(1))], why

    def needs(self, session: Session) -> Iterator[tuple[Place, str]]:
        """What something of the session, or of its inbox, still needs, as the records are now."""
        requests = [_read(path) for path in _waiting(self.path)]
        events = [event for event in session.journal.checkpoints() if session.is_valid(event)]
        by_path = {event.path: (event.job, event.iteration) for event in events}
        failed = {name for name, job in session.jobs.items() if job.verdict is Verdict.FAILED}
        again: set[str] = set()
        specs = {name: job.spec for name, job in session.jobs.items()}
        for request in requests:
            if isinstance(request, RetryRequest):
                again |= set(request.jobs) or failed
            if isinstance(request, SubmitRequest):
                specs = {**{spec.name: spec for spec in request.jobs}, **specs}
        for name, spec in specs.items():
            job = session.jobs.get(name)
            is_cancelled = job is not None and job.was_cancelled and name not in again
            if job is not None and (job.verdict is Verdict.FINISHED or is_cancelled):
                continue
            if job is None or not job.launched:
                for place in self.starts(spec):
                    yield place, f"{name} starts from it"
            for path, place in by_path.items():
                if any(path in word for word in spec.command):
                    yield place, f"{name} reads it"
                reads_all = spec.kind is Kind.UPLOAD and job is not None and job.launched
                if reads_all and str(Path(path).parent) in spec.command:
                    yield place, f"{name} uploads it"
        retried = {request.key for request in requests if isinstance(request, ActionRequest)}
        for key, action in session.actions.items():
            if self.acts(action, key in retried) and session.is_valid(action.event):
                assert isinstance(action.event, CheckpointComplete)
                yield (action.event.job, action.event.iteration), f"{key} is to be done"
        for name, job in session.jobs.items():
            yield from self.stays(session, name, job)

    def starts(self, spec: JobSpec) -> Iterator[Place]:
        """What a job that has not started starts from, unless it has its own copy."""
        late = () if spec.draft is None else spec.draft.late.values()
        for awaited in (*spec.awaits, *late):
            if awaited.checkpoint is not None:
                yield awaited.job, awaited.checkpoint
        if spec.starts_at is None or spec.parent is None:
            return
        for at in spec.merge.iterations if spec.merge else (spec.starts_at,):
            folder = spec.input_dir(at) if spec.merge else Path(spec.save_dir)
            copies: list[FoundCheckpoint] = spec.trainer.checkpoints(folder).complete
            if at not in [found.iteration for found in copies]:
                yield spec.parent, at

    def acts(self, action: ActionRecord, is_retried: bool) -> bool:
        if isinstance(action.action, Delete) or not isinstance(action.event, CheckpointComplete):
            return False
        reads = isinstance(action.action, Launch | RunCommand | Start | Keep)
        is_wanted = not str(action.reason).startswith(("dropped: ", "not done: ")) or is_retried
        can_be_done = not isinstance(action.action, Start | Keep) or not action.is_settled
        return reads and can_be_done and action.status is not ActionStatus.DONE and is_wanted

    def stays(self, session: Session, name: str, job: JobRecord) -> Iterator[tuple[Place, str]]:
        """What a job needs itself, and what `keep` keeps of it."""
        found = sorted({*job.checkpoints, *job.deleted})
        keep = self.driver.session.experiment.retention
        assert keep is not None
        for at in found if job.there_before is None else job.there_before:
            yield (name, at), "it is not of the session's own job"
        for at in found[-max(1, keep.last) :]:
            yield (name, at), "it is among the newest"
        for at in found:
            if any(at % every == 0 for every in keep.every):
                yield (name, at), "every"
        for other in session.jobs.values():
            spec = other.spec
            if keep.branch_points and spec.parent == name and spec.starts_at is not None:
                for at in spec.merge.iterations if spec.merge else (spec.starts_at,):
                    yield (name, at), "branch_points"
            if keep.evaluated and spec.kind is Kind.EVALUATE:
                for at in found:
                    if any(
                        sessions.folder_name(at) in w and f"/{name}/" in w for w in spec.command
                    ):
                        yield (name, at), "evaluated"

    def comes_to_its_end(self) -> None:
        """What has failed is tried again: it finds what it needs, too."""
        self.fate.steps_left, self.scheduler.next_time = 0, None
        for _ in range(2):
            for _ in range(40):
                if not self.driver.session.is_over:
                    self.all_goes_well(1)
                    self.nothing_that_is_needed_is_deleted()
            enqueue(self.path, RetryRequest(by="ann"))
            self.all_goes_well(1)
        self.nothing_that_is_needed_is_deleted()


@pytest.fixture(autouse=True)
def _world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))  # where adopted jobs are noted
    words = ("project.name=tiny", f"backend.args.train_iters={LAST}", "cooldowns=[]")
    every = (f"backend.args.save_interval={EVERY}", "monitoring.save_progress_every_s=0")
    settings = setting({"stages": STAGES, "monitoring": RULES})
    Play.composed, Play.fate = compose("demo", (*words, *every), settings), Fate(monkeypatch)


def test_whatever_dies_when_what_a_later_action_needs_is_never_deleted() -> None:
    deleted_in_all.clear()
    playing.play(Play)
    assert sum(deleted_in_all) > 10, "what keeps everything would have passed, too"
