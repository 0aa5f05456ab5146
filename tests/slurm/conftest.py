"""Tests on a real SLURM cluster; all are skipped where none answers."""

import fcntl
import os
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from prefect.settings import get_current_settings
from prefect.testing.utilities import prefect_test_harness

from tests.flows.sessions import Make
from tests.patience import until
from tests.slurm.bench import Bench, slurm
from tests.slurm.cluster import Cluster, undisturbed
from tests.slurm.commands import Commands, wrapped
from tests.slurm.sessions import sessions_below

_OURS = ("AUTOEXP_CONFIGS", "AUTOEXP_SESSIONS")


@cache
def answers() -> bool:
    """Whether a cluster answers here; the first call makes it this run's alone, to its end."""
    _alone.append(os.open(__file__, os.O_RDONLY))
    until(lambda: _try_lock(_alone[0]), "the end of another run of these tests", seconds=3600)
    try:
        if subprocess.run(["sinfo"], capture_output=True, timeout=120).returncode != 0:
            return False
    except (OSError, subprocess.TimeoutExpired):
        return False
    _clear_leftovers()
    return True


def _clear_leftovers() -> None:
    """Cancel the jobs of earlier runs that were killed before they could do it themselves."""
    left = [row.split(" ", 1) for row in slurm("squeue", "-h", "-o", "%i %o").splitlines()]
    if ids := [job_id for job_id, script in left if "/pytest-of-" in script]:
        slurm("scancel", *ids)


# A run stops controllers and kills nodes: two at a time would end each other's jobs.
_alone: list[int] = []


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("slurm") and not answers():
        pytest.skip("no SLURM cluster answers: tests/slurm/cluster.sh up")


@pytest.fixture(scope="session", autouse=True)
def _own_environment() -> Iterator[None]:
    """What the developer's shell says must not decide what a test finds."""
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith(("SLURM_", "SBATCH_")) and name != "SLURM_CONF":
                patch.delenv(name)
        for name in _OURS:
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A Prefect server, unless one of the flow tests' own is there already."""
    if get_current_settings().api.url:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        # They write beside the API, which then says "database is locked", and every subflow starts
        # two seconds later. Nobody here looks at what they write.
        for service in ("TASK_RUN_RECORDER", "EVENT_PERSISTER", "TRIGGERS", "SCHEDULER"):
            patch.setenv(f"PREFECT_SERVER_SERVICES_{service}_ENABLED", "false")
        with prefect_test_harness(server_startup_timeout=600):
            yield


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """The cluster, for a test that disturbs it."""
    with undisturbed() as whole:
        yield whole


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    """The wrapped commands, first on PATH."""
    with wrapped(tmp_path) as found:
        yield found


@pytest.fixture
def bench(commands: Commands, tmp_path: Path) -> Iterator[Bench]:
    """A session of single commands, behind the wrapper; its jobs end with the test."""
    made = Bench.create(tmp_path / "sessions")
    yield made
    commands.behaves()
    made.close()


@pytest.fixture
def make_session(prefect_server: None, commands: Commands, tmp_path: Path) -> Iterator[Make]:
    """Creates small sessions of the demo; their jobs end with the test."""
    del prefect_server
    with sessions_below(tmp_path / "sessions") as make:
        yield make
        commands.behaves()
