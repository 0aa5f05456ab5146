"""Nothing that a later action needs is ever deleted: random plans, branches, rules, orders."""

import os
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings

from autoexp.config.compose import Composed, compose
from autoexp.config.cooldowns import Cooldown, Merge
from autoexp.jobs.record import JobRecord, RestartRequest
from autoexp.jobs.spec import JobSpec
from autoexp.planning.plan import make_plan
from autoexp.retention.decision import standings
from autoexp.retention.policy import Retention
from autoexp.retention.uses import Situation
from autoexp.rules.events import CheckpointComplete
from autoexp.rules.metrics import Logged
from autoexp.states import Kind, Verdict
from tests.builders import attempt_of, spec_of

LAST = 1200
keeps = st.lists(
    st.one_of(
        st.sampled_from(["branch_points", "evaluated"]),
        st.builds(lambda n: {"last": n}, st.integers(1, 4)),
        st.builds(lambda n: {"every": 100 * n}, st.integers(1, 8)),
    ),
    min_size=1,
    max_size=3,
)
points = st.lists(st.integers(1, 11).map(lambda n: 100 * n), min_size=1, max_size=4, unique=True)


class World:
    """Jobs that save, start, read and roll back; `there` is what lies on the disk."""

    def __init__(self, composed: Composed, draw: st.DrawFn, plan: Any) -> None:
        self.draw = draw
        self.retention = Retention(keep=draw(keeps))
        self.jobs: dict[str, JobRecord] = {}
        for spec in plan.jobs:
            own = spec.parent is None
            self.jobs[spec.name] = JobRecord(spec=spec, launched=own, there_before=[])
        self.there: list[CheckpointComplete] = []
        self.pinned: set[tuple[str, int]] = set()
        self.launched_from: dict[str, CheckpointComplete] = {}
        self.gone_back: set[tuple[str, int | None]] = set()
        self.deleted = 0

    @property
    def trunk(self) -> JobRecord:
        return self.jobs["tiny"]

    def path(self, job: str, iteration: int) -> str:
        return f"/out/{job}/iter_{iteration:07d}"

    def has(self, job: str, iteration: int) -> bool:
        return any((e.job, e.iteration) == (job, iteration) for e in self.there)

    def save(self, job: JobRecord) -> None:
        start = job.spec.branch.iteration if job.spec.branch else 0
        target = job.spec.target_iteration or 0
        step = max([start, *job.checkpoints]) + 100
        if not job.launched or job.is_over or job.spec.merge:
            return
        at = min(step, target)
        if not job.attempts or self.draw(st.integers(0, 4)) == 0:
            first = job.saved_iteration
            job.attempts = [attempt_of(first_iteration=first, state="RUNNING")]
            job.tail = []
        job.tail = [*job.tail, Logged(at - 5, 2.0, 0.1, 1.0)][-3:]
        job.iteration = at
        job.checkpoints = [*job.checkpoints, at]
        self.there.append(
            CheckpointComplete(job=job.spec.name, iteration=at, path=self.path(job.spec.name, at))
        )
        if at == target:
            job.verdict = Verdict.FINISHED

    def delete(self) -> None:
        situation = Situation(
            self.retention,
            self.jobs,
            tuple(self.there),
            frozenset(self.pinned),
            launched_from=self.launched_from,
            may_roll_back=frozenset(self.jobs),
        )
        gone = [standing.checkpoint for standing in standings(situation) if standing.goes]
        for event in gone:
            job = self.jobs[event.job]
            assert event.iteration != max(job.checkpoints), "the newest complete one"
            job.checkpoints = [at for at in job.checkpoints if at != event.iteration]
            job.deleted = [*job.deleted, event.iteration]
        self.there = [event for event in self.there if event not in gone]
        self.deleted += len(gone)

    def start(self, job: JobRecord) -> None:
        """A branch, a merge or a stage begins, if what it starts from has ever been saved."""
        spec, parent = job.spec, self.jobs.get(job.spec.parent or "")
        if job.launched or job.is_over or parent is None:
            return
        if spec.starts_at is None:
            self.begin_stage(job)
            return
        inputs = spec.merge.iterations if spec.merge else (spec.starts_at,)
        for at in inputs:
            seen = at in parent.checkpoints or at in parent.deleted
            if (spec.name, at) in self.pinned or not seen:
                continue
            assert self.has(parent.spec.name, at), f"{spec.name} starts from {at}"
            self.pinned.add((spec.name, at))
        job.launched = all((spec.name, at) in self.pinned for at in inputs)

    def begin_stage(self, job: JobRecord) -> None:
        for awaited in job.spec.awaits:
            other = self.jobs[awaited.job]
            at = awaited.checkpoint
            if at is None:
                if other.verdict is not Verdict.FINISHED:
                    return
            elif at not in other.checkpoints:
                assert at not in other.deleted, f"{job.spec.name} waits for {at}"
                return
        job.launched = True

    def evaluate(self) -> None:
        """A rule launches an evaluation of the newest checkpoint."""
        if not self.there or len(self.jobs) > 30:
            return
        event = self.there[-1]
        name = f"eval-{event.job}-{event.iteration}"
        if name not in self.jobs:
            words = ("eval", f"--load={event.path}/model")
            named = self.draw(st.booleans())
            spec: JobSpec = spec_of(*(words if named else ()), name=name, kind=Kind.EVALUATE)
            self.jobs[name] = JobRecord(spec=spec, launched=True)
            self.launched_from[name] = event

    def read(self, job: JobRecord) -> None:
        """An evaluation reads its checkpoint, fails and is retried, or finishes."""
        event = self.launched_from.get(job.spec.name)
        if event is None or job.verdict is Verdict.FINISHED:
            return
        assert event in self.there, f"{job.spec.name} reads {event.iteration}"
        job.verdict = self.draw(st.sampled_from([None, Verdict.FAILED, Verdict.FINISHED]))

    def roll_back(self, job: JobRecord) -> None:
        """Trouble is found somewhere in what rules look at, or right at the start."""
        if job.is_over or not job.attempts or not job.checkpoints:
            return
        attempt = job.attempts[-1]
        limits = [logged.iteration for logged in job.tail]
        # Before the beginning of an attempt that a roll back began there may be nothing left.
        if (job.spec.name, attempt.first_iteration) not in self.gone_back:
            limits += [(attempt.first_iteration or 0) - 1]
        limit = self.draw(st.sampled_from(limits))
        start = [job.spec.branch.iteration] if job.spec.branch else []
        ever = [*job.checkpoints, *job.deleted, *start]
        if not any(at <= limit for at in ever):
            return
        good = [at for at in (*start, *job.checkpoints) if at <= limit]
        assert good, f"{job.spec.name} goes back to {limit} of {ever}"
        back = max(good)
        job.restart = RestartRequest(attempt=1, action="a", reason="r", roll_back_to=back)
        self.delete()
        job.restart = None
        self.gone_back.add((job.spec.name, back))
        assert back in start or self.has(job.spec.name, back)
        self.there = [e for e in self.there if e.job != job.spec.name or e.iteration <= back]
        for name, event in self.launched_from.items():
            if event.job == job.spec.name and event.iteration > back:
                self.jobs[
                    name
                ].verdict = Verdict.FINISHED  # it is set aside: there is nothing to do
        job.checkpoints = [at for at in job.checkpoints if at <= back]
        job.deleted = [at for at in job.deleted if at <= back]
        waiting = self._waiting(job, back)
        self.pinned = {p for p in self.pinned if p[1] <= back or p[0] not in waiting}

    def _waiting(self, job: JobRecord, back: int) -> set[str]:
        """Merges that have not started: their inputs behind are pinned anew."""
        return {
            name
            for name, other in self.jobs.items()
            if other.spec.parent == job.spec.name and not other.launched
            and (other.spec.starts_at or 0) > back
        }  # fmt: skip


@st.composite
def worlds(draw: st.DrawFn, composed: Composed) -> World:
    cooldowns = [
        Cooldown.model_validate(
            {
                "at": draw(points),
                "decay": {"iterations": draw(st.sampled_from([50, 150, 400]))},
                "name": f"c{number}",
                "then": draw(st.sampled_from([[], [{"decay": {"iterations": 200}}]])),
            }
        )
        for number in range(draw(st.integers(0, 2)))
    ]
    merge = Merge.model_validate({"at": [draw(st.sampled_from([600, 900]))], "last": 400})
    merges = (merge,) if draw(st.booleans()) else ()
    changes = {"cooldowns": tuple(cooldowns), "merges": merges}
    plan = make_plan(composed.experiment.model_copy(update=changes), Path("/out"))
    return World(composed, draw, plan)


COMPOSED = compose(
    "demo",
    (
        "project.name=tiny",
        f"backend.args.train_iters={LAST}",
        "backend.args.save_interval=100",
        "cooldowns=[]",
        "stages={check: {command: ['true', '{sibling.stable.checkpoint_path}'], kind: evaluate, "
        "after: {stable: {checkpoint: 500}}}}",
    ),
)


def play(data: st.DataObject) -> int:
    """Play a session in a random order; returns how many checkpoints were deleted."""
    world = data.draw(worlds(COMPOSED))
    acts = data.draw(st.lists(st.integers(0, 9), min_size=20, max_size=60))
    for act in acts:
        jobs = list(world.jobs.values())
        if act < 4:
            world.save(world.trunk if act < 3 else data.draw(st.sampled_from(jobs)))
        elif act == 4:
            world.delete()
        elif act == 5:
            world.start(data.draw(st.sampled_from(jobs)))
        elif act == 6:
            world.evaluate()
        elif act == 7:
            world.read(data.draw(st.sampled_from(jobs)))
        elif act == 8:
            world.roll_back(data.draw(st.sampled_from(jobs)))
        else:
            world.delete()
    for job in list(world.jobs.values()):
        world.start(job)
        world.read(job)
    return world.deleted


MOST = int(os.environ.get("AUTOEXP_TEST_PLAYS", "100"))


def test_nothing_that_a_later_action_needs_is_ever_deleted() -> None:
    deleted: list[int] = []

    @settings(max_examples=MOST, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def plays(data: st.DataObject) -> None:
        deleted.append(play(data))

    plays()
    assert sum(deleted) > MOST, "what keeps everything would have passed, too"
