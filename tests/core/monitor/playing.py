"""Random plays of a session whose monitor dies at durable steps, and how many are played."""

import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import hypothesis.strategies as st
from hypothesis import HealthCheck, seed, settings
from hypothesis import Phase as Stage
from hypothesis import stateful as hs

from tests.core.monitor.driver import Driver
from tests.fakes.scheduler import FakeJob, FakeScheduler, Fate

which = st.integers(0, 9)


class Play(hs.RuleBasedStateMachine):
    """One session, its trainers, its scheduler, and a monitor that dies again and again."""

    fate: ClassVar[Fate]
    folder: "tempfile.TemporaryDirectory[str]"
    path: Path
    scheduler: FakeScheduler

    def comes_to_its_end(self) -> None:
        """Play what is left without further deaths, and check it."""
        raise NotImplementedError

    def teardown(self) -> None:
        if sys.exc_info()[0] is None and hasattr(self, "driver"):
            self.comes_to_its_end()
        self.folder.cleanup()

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


def play(machine: type[Play]) -> None:
    """Play `AUTOEXP_TEST_PLAYS` times (10) from `AUTOEXP_TEST_SEED` on, or for `FUZZ_S` seconds."""
    # Hypothesis varies what it has played after ten plays: ten at a time are all different.
    ten_plays = settings(
        max_examples=10,
        stateful_step_count=40,
        deadline=None,
        phases=[Stage.generate, Stage.shrink],
        suppress_health_check=list(HealthCheck),
    )
    first = int(os.environ.get("AUTOEXP_TEST_SEED", "0"))
    plays, seconds = int(os.environ.get("AUTOEXP_TEST_PLAYS", "10")), os.environ.get("FUZZ_S")
    begun = time.monotonic()
    until = begun + float(seconds) if seconds else None
    for number in itertools.count(first):
        if until is None and number - first >= plays // 10:
            break
        played = number - first
        # Another ten take as long as ten did: the time ends at the nearest ten.
        ten_s = (time.monotonic() - begun) / max(1, played)
        if until is not None and played and time.monotonic() + ten_s / 2 > until:
            print(f"{played} times ten plays, from seed {first} on: no finding")
            break
        hs.run_state_machine_as_test(seed(number)(machine), settings=ten_plays)
