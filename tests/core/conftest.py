"""What the core tests share: a tiny experiment, a session of it, and ways to die."""

import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from autoexp.backends.demo import DemoBackend
from autoexp.config.compose import Composed, compose
from autoexp.jobs.record import Attempt
from autoexp.jobs.spec import JobSpec
from autoexp.logs import matcher
from autoexp.logs.engines import Hyperscan, Linear, best_engine
from autoexp.model import now
from autoexp.payload import process_identity
from autoexp.planning.study import plan_study
from autoexp.resources.machines import LocalMachine
from autoexp.schedulers.base import AttemptRef, PayloadSpec, prepare
from autoexp.session import create as creation
from autoexp.session import find
from autoexp.session.meta import new_id, output_root
from autoexp.states import Kind
from tests.killing import die_at

_OURS = ("AUTOEXP_CONFIGS", "AUTOEXP_SESSIONS")
_MARK = "AUTOEXP_TEST_MARK"

# A trunk of 300 iterations with checkpoints at 100, 200 and 300, and two cooldowns of 50.
TINY = (
    "project.name=tiny",
    "backend.args.train_iters=300",
    "backend.args.save_interval=100",
    "monitoring.save_progress_every_s=0",
    "cooldowns=[{at: [100, 200], decay: {iterations: 50}}]",
)


def create(composed: Composed, root: Path, *, session_id: str | None = None, **others: Any) -> Path:
    """A new session of what is composed, planned as `autoexp run` does."""
    decided = find.claimed(others["flow_run_id"], root) if "flow_run_id" in others else None
    name = decided or session_id or new_id(composed.experiment.project.name)
    plan = plan_study(composed, output_root(composed.experiment, root / name))
    return creation.create(composed, plan, root, session_id=name, **others)


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


# Hyperscan is an extra; where it is not installed, what it would answer is not checked.
ENGINES = (Linear, Hyperscan) if best_engine() is Hyperscan else (Linear,)


@pytest.fixture(params=ENGINES, ids=lambda engine: str(engine.__name__))
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type:
    """Every engine that finds lines for rules, in the place of the best."""
    chosen: type = request.param
    monkeypatch.setattr(matcher, "best_engine", lambda: chosen)
    return chosen


KilledAt = Callable[[int, Callable[[], object]], bool]


@pytest.fixture
def killed_at() -> KilledAt:
    """`killed_at(n, act)` runs `act` in a process that is killed at its n-th durable step.

    Returns False when `act` came to its end before that.
    """

    def run(n: int, act: Callable[[], object]) -> bool:
        child = os.fork()
        if child == 0:
            try:
                die_at(n)
                act()
                os._exit(0)
            except BaseException:
                traceback.print_exc(file=sys.__stderr__)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, -signal.SIGKILL), f"the process ended with {code}"
        return code != 0

    return run


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


FullDisk = Callable[[int], AbstractContextManager[None]]


@pytest.fixture
def full_disk() -> FullDisk:
    """`with full_disk(n):` no file can grow beyond n bytes; a write that would ends short."""

    @contextmanager
    def limited(most: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


WaitFor = Callable[[Callable[[], object], str], None]


@pytest.fixture
def wait_for() -> WaitFor:
    """`wait_for(condition, what)` waits for other processes; after two minutes it fails."""

    def wait(condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain for: {what}"
            time.sleep(0.01)

    return wait


@pytest.fixture
def no_survivors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test has started ends with it: every process carries the test's mark."""
    monkeypatch.setenv(_MARK, str(tmp_path))
    yield
    for pid in _marked(f"{_MARK}={tmp_path}".encode()):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def spec_of(*command: str, directory: Path = Path("/out"), **changes: Any) -> JobSpec:
    """A job of the demo backend on this machine that writes in `directory`."""
    fields: dict[str, Any] = {
        "name": "j",
        "kind": Kind.TRAIN,
        "backend": DemoBackend(),
        "machine": LocalMachine(),
        "command": command,
        "output_dir": str(directory),
        "save_dir": str(directory / "checkpoints"),
    }
    return JobSpec(**fields | changes)


def attempt_of(key: str = "s1-j-a1", log: str = "/log", **changes: Any) -> Attempt:
    """The first attempt of a job."""
    fields: dict[str, Any] = {"number": 1, "key": key, "name": key, "log": log}
    return Attempt(**fields | {"intended_at": now()} | changes)


class Job(NamedTuple):
    """An attempt at a command, in a directory of its key."""

    ref: AttemptRef
    spec: JobSpec
    attempt: Attempt

    def prepare(self, *, grace_s: float = 10.0) -> None:
        payload_spec = PayloadSpec(self.spec.command, self.spec.environment, grace_s)
        prepare(self.ref, self.spec, self.attempt, payload_spec)

    @property
    def directory(self) -> Path:
        return self.ref.directory

    @property
    def output(self) -> Path:
        return Path(self.spec.output_dir)

    @property
    def log(self) -> bytes:
        path = Path(self.attempt.log)
        return path.read_bytes() if path.exists() else b""

    def read(self, name: str) -> dict[str, Any]:
        """A file that the payload left in the attempt's directory."""
        content: dict[str, Any] = json.loads((self.directory / name).read_text())
        return content


JobOf = Callable[..., Job]


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


def is_alive(pid: int | str) -> bool:
    """Whether a process runs; a zombie does not."""
    return process_identity(int(pid)) is not None


def _marked(mark: bytes) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if mark in environment.split(b"\0"):
                found.append(int(entry.name))
    return found
