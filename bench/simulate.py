"""`python -m bench.simulate`: the real core in virtual time, 10,000 jobs over a month.

Monitor, Session, inbox and `submit_once` are the real ones, on a real filesystem. The clock, the
trainers and the scheduler are synthetic. The monitor is killed at durable steps again and again.
What is checked: every submission happened once, every checkpoint's rules once, nothing is lost.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import autoexp.model
from autoexp.config.compose import compose
from autoexp.jobs.spec import JobSpec
from autoexp.planning.plan import NO_JOBS, make_plan
from autoexp.rules.actions import Start
from autoexp.session.action_records import ActionStatus
from autoexp.session.create import create
from autoexp.session.inbox import SubmitRequest, enqueue
from autoexp.session.session import Session
from autoexp.states import Verdict
from autoexp.storage import atomic
from bench.world.cluster import DAY, Clock, Cluster, Rates
from bench.world.measure import RESULTS, Traffic, machine, resident_mb, versions
from bench.world.monitor_driver import Driver, Fate, Killed

FAMILY = 20
"""Jobs of a family: a trunk of 48 hours and its cooldowns."""
TICK_S = 1800.0
"""Between two looks. A real monitor looks every 2 s; docs/scaling.md adds what that costs."""
_USUAL = Rates()
_EXPERIMENT = (
    "project.name=fam",
    "monitoring=basic",
    "slurm=base",
    "backend.args.train_iters=4800",
    "backend.args.save_interval=480",
    "cooldowns=[{every: 480, decay: {iterations: 600}},"
    " {at: [480, 960, 1440, 1920, 2400, 2880, 3360, 3840, 4320],"
    " decay: {iterations: 900}, name: long}]",
)


class Simulation:
    """A month of one session."""

    def __init__(
        self,
        folder: Path,
        jobs: int,
        days: float,
        seed: int,
        rates: Rates = _USUAL,
        overrides: Sequence[str] = (),
        killed_every_s: float = DAY,
    ) -> None:
        dice = random.Random(seed)
        self.clock = Clock(time.time())
        self.cluster = Cluster(self.clock, dice, rates, capacity=max(10, jobs // 25))
        self.fate = Fate(dice)
        self.costs: Counter[str] = Counter()
        self.lives: list[int] = []
        self._dice = dice
        self._days = days
        self._composed = compose("demo", (*_EXPERIMENT, *overrides))
        self._families = jobs // FAMILY
        self._folder = folder
        self._begun = self.clock.seconds
        self._killed_every_s = killed_every_s
        self._next_kill = self._begun + dice.expovariate(1 / killed_every_s)

    def run(self) -> Session:
        """Simulate until all jobs have ended; returns the session as it is on disk then."""
        path = create(self._composed, NO_JOBS, self._folder, session_id="sim")
        driver = self._resume(path)
        brought = 0
        while brought < self._families or not driver.session.is_over:
            self.clock.sleep(TICK_S)
            self.cluster.advance()
            passed = (self.clock.seconds - self._begun) / (self._days * DAY)
            while brought < min(self._families, passed * self._families):
                with self.fate.spared():
                    enqueue(path, SubmitRequest(jobs=self._family(path, brought), by="sim"))
                brought += 1
            if self.clock.seconds >= self._next_kill:
                self._next_kill += self._dice.expovariate(1 / self._killed_every_s)
                self.fate.threaten()
            try:
                self._counted(driver.tick)
            except Killed:
                driver = self._resume(path)
            if self.costs["ticks"] % 100 == 0:
                days = (self.clock.seconds - self._begun) / DAY
                print(f"day {days:.0f}", file=sys.stderr, flush=True)
            assert self.clock.seconds < self._begun + (self._days + 60) * DAY, "it never ends"
            self.lives.append(sum(1 for job in driver.session.jobs.values() if not job.is_over))
        return Session.load(path)

    def _resume(self, path: Path) -> Driver:
        self.costs["monitors"] += 1
        while True:
            with suppress(Killed):
                driver: Driver = self._counted(lambda: Driver(path, self.cluster), "resume")
                return driver

    def _counted(self, work: Any, kind: str = "tick") -> Any:
        """Do the monitor's work, and note what it costs."""
        before, began = Traffic.now(), time.process_time()
        try:
            return work()
        finally:
            self.costs[f"{kind} cpu ms"] += int((time.process_time() - began) * 1e3)
            self.costs["bytes"] += Traffic.now().written - before.written
            self.costs[f"{kind}s"] += 1

    def _family(self, path: Path, number: int) -> tuple[JobSpec, ...]:
        root = path / "output"
        plan = make_plan(self._composed.experiment, root)

        def named(spec: JobSpec) -> JobSpec:
            name = spec.name.replace("fam", f"f{number:04d}", 1)
            changes: dict[str, Any] = {
                "name": name,
                "parent": spec.parent and spec.parent.replace("fam", f"f{number:04d}", 1),
                "output_dir": str(root / name),
                "save_dir": str(root / name / "checkpoints"),
            }
            return spec.model_copy(update=changes)

        return tuple(named(spec) for spec in plan.jobs)

    # Whether all was well

    def check(self, session: Session) -> None:
        """Raise AssertionError where a submission or a checkpoint's rules were lost or doubled."""
        self.check_submissions(session)
        ended_well = sum(job.verdict is Verdict.FINISHED for job in session.jobs.values())
        assert ended_well > 0.9 * len(session.jobs), f"only {ended_well} finished"
        self.check_starts(session)

    def check_submissions(self, session: Session) -> None:
        """Raise AssertionError where a submission or an event was lost or doubled."""
        doubled = {key: n for key, n in self.cluster.submissions.items() if n != 1}
        assert not doubled, f"submitted more than once: {doubled}"
        attempts = {a.key: a for job in session.jobs.values() for a in job.attempts}
        strange = set(self.cluster.submissions) - set(attempts)
        assert not strange, f"submitted and not recorded: {strange}"
        for key, attempt in attempts.items():
            known = self.cluster.jobs.get(str(attempt.job_id))
            assert known is None or known.name == key, f"{key} has the job id of {known.name}"
        assert not [job for job in self.cluster.jobs.values() if job.is_alive]
        keys = [entry.event.key for entry in session.journal.entries]
        assert len(keys) == len(set(keys)), "an event stands twice"
        elsewhere = [a.wrong_start for a in attempts.values() if a.wrong_start is not None]
        assert not elsewhere, f"{len(elsewhere)} blamed for nothing: {elsewhere[0]}"

    def check_starts(self, session: Session) -> None:
        """Raise AssertionError where a branch did not start, or more than once."""
        seen = session.journal.checkpoints()  # those too that were deleted since
        complete = {(e.job, e.iteration) for e in seen if session.is_valid(e)}
        starts = Counter(
            a.action.job for a in session.actions.values() if isinstance(a.action, Start)
        )
        assert set(starts.values()) <= {1}, "the rules of a checkpoint were decided twice"
        assert all(a.status is ActionStatus.DONE for a in session.actions.values())
        for name, job in session.jobs.items():
            branch = job.spec.branch
            if branch is None:
                continue
            wanted = (job.spec.parent, branch.iteration) in complete
            assert starts[name] == wanted == job.launched, f"{name}: started {starts[name]} times"
            assert bool(job.attempts) == wanted, f"{name}: {len(job.attempts)} attempts"


@contextmanager
def virtual(clock: Clock, fate: Fate) -> Iterator[None]:
    """The core sees the simulation's time, and dies when its fate says so."""
    with ExitStack() as stack:
        for name in ("time", "time_ns", "sleep"):
            stack.enter_context(mock.patch.object(time, name, getattr(clock, name)))
        stack.enter_context(mock.patch.object(time, "monotonic", clock.time))
        stack.enter_context(mock.patch.object(autoexp.model, "datetime", clock))
        stack.enter_context(mock.patch.object(atomic, "step", fate.step))
        # No power cut is simulated: what a killed process has written stays.
        stack.enter_context(mock.patch.object(os, "fsync", lambda descriptor: None))
        yield


def memory() -> Path | None:
    """Where files lie in memory; None: as any temporary file does."""
    place = Path("/dev/shm")
    return place if place.is_dir() else None


@contextmanager
def simulated(
    jobs: int, days: float, seed: int, rates: Rates = _USUAL
) -> Iterator[tuple[Simulation, Session]]:
    """A simulation that has come to its end, and the session that it left."""
    # It is the CPU that is measured, and the bytes.
    with tempfile.TemporaryDirectory(dir=memory()) as folder:
        simulation = Simulation(Path(folder), jobs, days, seed, rates)
        with virtual(simulation.clock, simulation.fate):
            session = simulation.run()
        yield simulation, session


def simulate(jobs: int, days: float, seed: int) -> dict[str, Any]:
    """Run a simulation, check it, and return what it cost."""
    with simulated(jobs, days, seed) as (simulation, session):
        simulation.check(session)
        return _report(simulation, session)


def _report(simulation: Simulation, session: Session) -> dict[str, Any]:
    costs, cluster = simulation.costs, simulation.cluster
    days = (simulation.clock.seconds - simulation._begun) / DAY
    attempts = [a for job in session.jobs.values() for a in job.attempts]
    return {
        "jobs": len(session.jobs),
        "simulated days": round(days, 1),
        "CPU s of the simulation, all in all": round(time.process_time(), 1),
        "verdicts": Counter(str(job.verdict) for job in session.jobs.values()),
        "attempts": len(attempts),
        "ends of attempts": Counter(a.state for a in attempts),
        "checkpoints": cluster.checkpoints,
        "events": len(session.journal),
        "actions": len(session.actions),
        "monitors killed": simulation.fate.kills,
        "live jobs, mean": round(sum(simulation.lives) / len(simulation.lives), 1),
        "live jobs, most": max(simulation.lives),
        "looks": costs["ticks"],
        "CPU s of looks and actions per day": round(costs["tick cpu ms"] / 1e3 / days, 2),
        "CPU s of a resume, mean": round(costs["resume cpu ms"] / 1e3 / costs["resumes"], 2),
        "MB written per day": round(costs["bytes"] / 1e6 / days, 2),
        "scheduler calls": dict(cluster.calls),
        "submissions per day": round(sum(cluster.submissions.values()) / days, 1),
        "memory at the end, MB": round(resident_mb()),
    }


def main() -> int:
    """Simulate, print the report and keep it."""
    parser = argparse.ArgumentParser(prog="python -m bench.simulate", description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--days", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    report = simulate(options.jobs, options.days, options.seed)
    text = json.dumps({"machine": machine(), "versions": versions(), **report}, indent=1)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"simulate-{options.jobs}.json").write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
