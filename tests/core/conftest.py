"""Fixtures of the core tests: a tiny experiment, a session of it, and ways to die."""

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoexp.config.compose import Composed, compose
from autoexp.dotted import setting
from autoexp.logs import matcher
from autoexp.logs.engines import Hyperscan, Linear, best_engine
from autoexp.schedulers.base import AttemptRef
from tests import disks, killing, processes
from tests.builders import TINY, attempt_of, create, spec_of
from tests.core.story import Story, StoryOf
from tests.disks import FullDisk
from tests.killing import KilledAt
from tests.processes import Job, JobOf, WaitFor, marked

_OURS = ("AUTOEXP_CONFIGS", "AUTOEXP_SESSIONS")
_MARK = "AUTOEXP_TEST_MARK"


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the developer's shell says must not decide what a test finds."""
    for name in _OURS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def composed() -> Composed:
    """A tiny experiment with the demo backend on the local machine."""
    with pytest.MonkeyPatch.context() as patch:
        for name in _OURS:
            patch.delenv(name, raising=False)
        return compose("demo", TINY)


@pytest.fixture
def session_path(tmp_path: Path, composed: Composed) -> Path:
    """A new session of the tiny experiment: nothing has been submitted yet."""
    return create(composed, tmp_path / "sessions", session_id="s1")


@pytest.fixture
def story_of(tmp_path: Path) -> StoryOf:
    """`story_of(metric_events=...)`: a trunk that runs, in a session with these rules."""
    numbers = itertools.count()
    known: dict[str, Composed] = {}  # a walk of kills asks for the same at each of its steps

    def make(**rules: dict[str, Any]) -> Story:
        changes = {f"monitoring.{kind}": named for kind, named in rules.items()}
        if (wanted := repr(changes)) not in known:
            known[wanted] = compose("demo", TINY, setting(changes))
        root = tmp_path / str(next(numbers))
        story = Story(create(known[wanted], root, session_id="s1"))
        story.submit()
        story.look(state="RUNNING")
        return story

    return make


# Hyperscan is an extra; where it is not installed, what it would answer is not checked.
ENGINES = (Linear, Hyperscan) if best_engine() is Hyperscan else (Linear,)


@pytest.fixture(params=ENGINES, ids=lambda engine: str(engine.__name__))
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type:
    """Every engine that finds lines for rules, in the place of the best."""
    chosen: type = request.param
    monkeypatch.setattr(matcher, "best_engine", lambda: chosen)
    return chosen


@pytest.fixture
def killed_at() -> KilledAt:
    """`killed_at(n, act)` runs `act` in a process that is killed at its n-th durable step.

    Returns False when `act` came to its end before that.
    """
    return killing.killed_at


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that are synced from now on, in order."""
    found: list[str] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        found.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    return found


@pytest.fixture
def full_disk() -> FullDisk:
    """`with full_disk(n):` no file can grow beyond n bytes; a write that would ends short."""
    return disks.full_disk


@pytest.fixture
def wait_for() -> WaitFor:
    """`wait_for(condition, what)` waits for other processes; after two minutes it fails."""
    return processes.wait_for


@pytest.fixture
def no_survivors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test has started ends with it: every process carries the test's mark."""
    monkeypatch.setenv(_MARK, str(tmp_path))
    yield
    for pid in marked(f"{_MARK}={tmp_path}".encode()):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


@pytest.fixture
def job_of(tmp_path: Path, no_survivors: None) -> JobOf:
    """`job_of(*command)` is an attempt at the command, which runs in the directory `output`."""

    def make(*command: str, number: int = 1, **environment: str) -> Job:
        key = f"s1-{tmp_path.name}-a{number}"
        directory = tmp_path / "attempts" / key
        spec = spec_of(*command, directory=tmp_path / "output", environment=environment)
        attempt = attempt_of(key, str(directory / "job.log"), number=number)
        return Job(AttemptRef(key, directory, key, "batch.sh"), spec, attempt)

    return make
