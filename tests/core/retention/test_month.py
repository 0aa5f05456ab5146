"""Months in virtual time with kills and node failures: disk within the plan's figure."""

import itertools
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from autoexp.jobs.spec import JobSpec
from autoexp.planning.launches import launches_of
from autoexp.planning.plan import Plan, disk_of
from autoexp.retention.decision import branch_points
from autoexp.retention.forecast import Forecast
from autoexp.rules.actions import Delete
from autoexp.rules.events import CheckpointDeleted, DiskBudgetPassed
from autoexp.session.action_records import ActionStatus
from autoexp.session.session import Session
from autoexp.states import Kind
from bench import simulate
from bench.world import sessions
from bench.world.cluster import DAY, Cluster, Rates, Trainer

LAST = 1920
"""Iterations of a training: most of a day."""


def disk(output: Path) -> int:
    """Bytes of checkpoints of all jobs in a folder; of a file of several names once.

    What a roll back has set aside is somebody's to remove, and not counted.
    """
    found: dict[int, int] = {}
    for job in os.scandir(output) if output.is_dir() else ():
        with suppress(FileNotFoundError):
            for folder in os.scandir(f"{job.path}/checkpoints"):
                if folder.name.startswith(("iter_", ".autoexp-")) and folder.is_dir():
                    _add(folder.path, found)
    return sum(found.values())


def _add(folder: str, found: dict[int, int]) -> None:
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            _add(entry.path, found)
        else:
            status = entry.stat(follow_symlinks=False)
            found[status.st_ino] = status.st_size


class Month(NamedTuple):
    """What is configured in a month, and what happens in it."""

    seed: int
    families: int
    size: int
    """Bytes of each checkpoint."""
    words: tuple[str, ...]
    rates: Rates
    killed_every_s: float
    days: float
    """In which its trainings are asked for."""
    trouble: float = 0.0
    """Of the lines of logs, so many call for a roll back."""


def month_of(seed: int) -> Month:
    """A month, all of it by chance."""
    dice = random.Random(seed)
    interval = dice.choice([120, 160, 240])
    saves = range(interval, LAST + 1, interval)
    kinds = ["branch_points", "evaluated", f"{{last: {dice.randint(1, 4)}}}"]
    kinds.append(f"{{every: {interval * dice.randint(2, 8)}}}")
    keep = tuple(dice.sample(kinds, dice.randint(1, len(kinds))))
    size = dice.choice([3, 1000, 10**6])
    kinds_of_branches = dice.randint(0, 2)
    families = dice.randint(2, 3) if kinds_of_branches else dice.randint(4, 8)
    branches = []
    for number in range(kinds_of_branches):
        at = sorted(dice.sample(saves, dice.randint(1, 3)))
        tail = dice.randint(2, 20) * Cluster.LOGGED
        then = dice.choice(["", ", then: [{decay: {iterations: 240}}]"])
        branches.append(f"{{at: {at}, decay: {{iterations: {tail}}}, name: b{number}{then}}}")
    budget = dice.choice(["", f", budget: {size * families * dice.randint(2, 30)}"])
    words = [
        f"backend.args.train_iters={LAST}",
        f"backend.args.save_interval={interval}",
        f"cooldowns=[{', '.join(branches)}]",
        f"retention={{keep: [{', '.join(keep)}], checkpoint_size: {size}{budget}}}",
    ]
    if dice.random() < 0.6:
        words.append(f"slurm.max_jobs={dice.randint(2, 6)}")
    if dice.random() < 0.5:
        score = "command: [score, '{checkpoint_path}']"
        launch = f"{{launch: {{{score}, name: '{{job.name}}-eval{{checkpoint_iteration}}'}}}}"
        every = interval * dice.randint(1, 6)
        look = f"{{look: {{every: {every}, actions: [{launch}]}}}}"
        words.append(f"monitoring.checkpoint_events={look}")
    trouble = dice.choice([0.0, 0.0, 0.003, 0.03])
    if trouble:
        rule = "{bad: {substring: it is wrong, actions: [{restart: {roll_back: true}}]}}"
        words.append(f"monitoring.log_events={rule}")
    rates = Rates(
        node_failures_per_hour=dice.uniform(0, 0.1),
        preemptions_per_hour=dice.uniform(0, 0.03),
        user_failures_per_attempt=dice.choice([0.0, 0.05, 0.5]),
        fails_within_hours=dice.choice([2.0, 20.0]),
        queue_hours=dice.choice([0.1, 0.5, 3.0]),
        time_limit_hours=dice.choice([3.0, 24.0]),
    )
    killed_every_s, days = DAY / dice.randint(1, 8), dice.choice([2.0, 30.0])
    return Month(seed, families, size, tuple(words), rates, killed_every_s, days, trouble)


class Saving(Trainer):
    """A trainer whose checkpoints have a size, and which needs the one that it goes on from."""

    def __init__(self, name: str, directory: Path, month: Month, dice: random.Random) -> None:
        super().__init__(name, directory)
        self._month = month
        self._dice = dice

    def begin(self, at: float) -> None:
        super().begin(at)
        if self.iteration:
            assert (self.saves / sessions.folder_name(self.iteration)).is_dir(), "it goes on there"

    def save(self, at: float) -> None:
        folder = self.saves / sessions.folder_name(self.iteration)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "data").open("wb") as file:
            file.truncate(self._month.size - len("x{}"))
        super().save(at)

    def log_line(self, at: float) -> None:
        super().log_line(at)
        if self._dice.random() < self._month.trouble:
            with self.log.open("a") as file:
                file.write("it is wrong\n")
            os.utime(self.log, (at, at))


class Reading(Trainer):
    """An evaluation, which reads a checkpoint for hours."""

    @staticmethod
    def length(flags: Mapping[str, str]) -> tuple[int, int]:
        return 5 * Cluster.LOGGED, LAST

    @property
    def _reads(self) -> Path:
        return Path(self.spec["command"][1])

    def begin(self, at: float) -> None:
        self.state, self.started_at = "RUNNING", at
        self._look()

    def log_line(self, at: float) -> None:
        self._look()

    def save(self, at: float) -> None:
        """It has none."""

    def _look(self) -> None:
        assert self._reads.is_dir(), f"{self.name} reads it"


def program(month: Month, dice: random.Random, name: str, directory: Path) -> Trainer:
    spec = json.loads((directory / "spec.json").read_text())
    if spec["command"][0] == "score":
        return Reading(name, directory)
    return Saving(name, directory, month, dice)


class Watched(simulate.Simulation):
    """A simulation in which the disk is looked at before and after each tick of the monitor."""

    def __init__(self, folder: Path, month: Month) -> None:
        jobs = month.families * simulate.FAMILY
        more = (month.rates, month.words, month.killed_every_s)
        super().__init__(folder, jobs, month.days, month.seed, *more)
        self.cluster.program = partial(program, month, random.Random(month.seed))
        self.peak = 0
        self.output = folder / "none"

    def _family(self, path: Path, number: int) -> tuple[JobSpec, ...]:
        self.output = path / "output"
        return super()._family(path, number)

    def _counted(self, work: Callable[[], Any], kind: str = "tick") -> Any:
        self._measure()
        try:
            return super()._counted(work, kind)
        finally:
            self._measure()

    def _measure(self) -> None:
        self.peak = max(self.peak, disk(self.output))


def said_by_the_plan(session: Session) -> Forecast:
    """What `plan` says of all the jobs of a session, those aside that rules launched."""
    specs = [job.spec for job in session.jobs.values() if job.spec.launched_by is None]
    launches = tuple(launches_of(session.experiment, specs))
    said = disk_of(session.experiment, Plan(jobs=tuple(specs), launches=launches))
    assert said is not None and said.bytes is not None
    return said


def refuse_lost(session: Session) -> None:
    """Raise AssertionError where something was deleted that stays, or that a job has missed."""
    retention = session.experiment.retention
    assert retention is not None
    specs = [job.spec for job in session.jobs.values()]
    for name, job in session.jobs.items():
        assert "`retention`" not in str(job.reason), job.reason
        there = {e.iteration for e in session.checkpoints() if e.job == name}
        assert all(Path(e.path).is_dir() for e in session.checkpoints())
        found = sorted(there | set(job.deleted))
        stays = {at for at in found for every in retention.every if at % every == 0}
        stays |= set(found[-retention.last :])
        if retention.branch_points:
            stays |= branch_points(specs, name) & set(found)
        if retention.evaluated:
            words = {word for spec in specs if spec.kind is Kind.EVALUATE for word in spec.command}
            paths = {at: f"{job.spec.save_dir}/{sessions.folder_name(at)}" for at in found}
            stays |= {at for at, path in paths.items() if path in words}
        assert stays <= there, f"{name}: {sorted(stays - there)} are gone"


class Ended(NamedTuple):
    """How a month has ended."""

    part: float
    """Disk space that was taken at most, of what the plan says."""
    deleted: int
    kills: int
    jobs: int


def play(month: Month) -> Ended:
    """Let a month pass, and check what has to hold whatever happens in it."""
    with tempfile.TemporaryDirectory(dir=simulate.memory()) as folder:
        played = Watched(Path(folder), month)
        with simulate.virtual(played.clock, played.fate):
            session = played.run()
        played.check_submissions(session)
        if not month.trouble:  # else what a branch began from may have been set aside since
            played.check_starts(session)
        refuse_lost(session)
        said = said_by_the_plan(session)
        part = played.peak / (said.bytes or 1)
        assert part <= 1, f"seed {month.seed}: {part:.2f} of {said}"
        passed = [e for e in session.journal.entries if isinstance(e.event, DiskBudgetPassed)]
        assert not passed or (said.budget or 0) < played.peak, f"seed {month.seed}"
        return Ended(part, deletions(session), played.fate.kills, len(session.jobs))


def deletions(session: Session) -> int:
    """Checkpoints that were deleted, each of them by an action, once."""
    deleted = [e.event for e in session.journal.entries if isinstance(e.event, CheckpointDeleted)]
    done = [a for a in session.actions.values() if isinstance(a.action, Delete)]
    assert len({event.key for event in deleted}) == len(deleted)
    assert len(deleted) == sum(a.status is ActionStatus.DONE for a in done)
    return len(deleted)


def test_trainings_that_fail_one_after_the_other_stay_within_the_disk_space_of_their_plan() -> None:
    words = (
        f"backend.args.train_iters={LAST}",
        "backend.args.save_interval=120",
        "cooldowns=[]",
        "retention={keep: [{last: 1}], checkpoint_size: 1000}",
        "slurm.max_jobs=2",
    )
    rates = Rates(
        node_failures_per_hour=0.1,
        user_failures_per_attempt=0.3,
        fails_within_hours=20.0,
        time_limit_hours=6.0,
    )
    # Each leaves two, of which nobody runs any longer: more than what two running ones have.
    play(Month(1, 12, 1000, words, rates, DAY, 2.0))


def test_months_stay_within_the_disk_space_of_their_plans_and_come_near_it() -> None:
    ended = [play(month_of(seed)) for seed in range(3)]
    assert sum(each.kills for each in ended) > 10
    assert sum(each.deleted for each in ended) > 20
    # What a plan says is no mere bound that nobody ever comes near.
    assert sum(each.part for each in ended) > len(ended) / 3, ended


@pytest.mark.slow
def test_whatever_a_month_brings_its_checkpoints_stay_within_the_disk_space_of_its_plan() -> None:
    """`AUTOEXP_TEST_MONTHS` (10) from `AUTOEXP_TEST_SEED` on, or those of `FUZZ_S` seconds."""
    count, seconds = int(os.environ.get("AUTOEXP_TEST_MONTHS", "10")), os.environ.get("FUZZ_S")
    first, begun = int(os.environ.get("AUTOEXP_TEST_SEED", "100")), time.monotonic()
    deleted = 0
    for number in itertools.count():
        taken_s = time.monotonic() - begun
        if number >= count if seconds is None else taken_s > float(seconds):
            break
        deleted += play(month_of(first + number)).deleted
    print(f"{number} months from seed {first} on, {deleted} deletions: no finding")
