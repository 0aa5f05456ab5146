"""Every way in which a job ends on a real cluster, as the monitor takes it down."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from autoexp.jobs.summary import waits
from autoexp.schedulers.base import JobStatus
from autoexp.schedulers.slurm.scheduler import SlurmScheduler
from autoexp.states import Verdict
from tests.patience import until
from tests.slurm import crowd
from tests.slurm.bench import Bench, cluster, slurm
from tests.slurm.cluster import undisturbed
from tests.slurm.commands import HIDE_ENDED, Commands, wrapped

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

STATES = {
    "completed": "COMPLETED",
    "failed": "FAILED",
    "killed": "FAILED",
    "out_of_memory": "OUT_OF_MEMORY",
    "step_out_of_memory": "OUT_OF_MEMORY",
    "cancelled": "CANCELLED",
    "scancelled": "CANCELLED",
    "scancelled_pending": "CANCELLED",
    "timeout": "TIMEOUT",
    "node_failed": "NODE_FAIL",
    "preempted": "PREEMPTED",
    "preempted_requeued": "COMPLETED",
    "requeued": "COMPLETED",
    "deadline": "DEADLINE",
}
# Exit code and signal, where the job itself has something to say about them.
CODES = {
    "completed": (0, None),
    "failed": (3, None),
    "killed": (None, 9),
    "cancelled": (None, 15),
    "timeout": (None, 15),
    "node_failed": (None, None),
    "requeued": (0, None),
}
NEVER_RAN = ("scancelled_pending", "deadline")


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    with wrapped(tmp_path_factory.mktemp("endings")) as found:
        yield found


@pytest.fixture(scope="module")
def bench(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """All of them, ended: it takes as long as the slowest, which is the time limit."""
    made = Bench.create(tmp_path_factory.mktemp("endings") / "sessions")
    with undisturbed() as whole:
        try:
            crowd.gather(made, whole)
            yield made
        finally:
            commands.behaves()
            made.close()


@pytest.fixture
def forgetful(commands: Commands, bench: Bench) -> Iterator[Commands]:
    """squeue has forgotten what ended."""
    commands.tell("squeue", HIDE_ENDED)
    yield commands
    commands.behaves()


@pytest.mark.parametrize("name", STATES)
def test_an_ending_is_taken_down_with_its_state(bench: Bench, name: str) -> None:
    assert bench.attempt(name).state == STATES[name]


@pytest.mark.parametrize("name", CODES)
def test_an_ending_keeps_the_exit_code_and_the_signal_of_the_command(
    bench: Bench, name: str
) -> None:
    attempt = bench.attempt(name)
    assert (attempt.exit_code, attempt.signal) == CODES[name]


@pytest.mark.parametrize("name", [name for name in STATES if name not in NEVER_RAN])
def test_an_ended_attempt_keeps_its_id_its_node_its_start_and_its_end(
    bench: Bench, name: str
) -> None:
    attempt = bench.attempt(name)
    described = slurm("sacct", "-X", "-n", "-P", "-j", str(attempt.job_id), "-o", "JobName").split()
    assert described == [attempt.key]
    assert attempt.nodes in ("n1", "n2", "n3")
    assert attempt.submitted_at is not None
    assert attempt.started_at is not None
    assert attempt.ended_at is not None
    assert attempt.started_at <= attempt.ended_at


@pytest.mark.parametrize("name", NEVER_RAN)
def test_a_job_that_never_ran_used_no_node_and_no_time(bench: Bench, name: str) -> None:
    attempt = bench.attempt(name)
    assert attempt.nodes is None
    assert attempt.started_at in (None, attempt.ended_at)
    assert attempt.exit_code is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("timeout", "TimeLimit"),
        ("node_failed", "NodeDown"),
        ("out_of_memory", "OutOfMemory"),
        ("deadline", "DeadLine"),
        ("failed", "NonZeroExitCode"),
    ],
)
def test_the_reason_is_slurms(bench: Bench, name: str, reason: str) -> None:
    assert bench.attempt(name).reason == reason


@pytest.mark.parametrize("name", ["timeout", "node_failed", "preempted"])
def test_what_is_nobodys_fault_is_to_be_submitted_again(bench: Bench, name: str) -> None:
    assert bench.attempt(name).verdict is Verdict.CONTINUE
    assert not bench.jobs[name].is_over


def test_a_cancellation_says_whether_it_was_ours(bench: Bench) -> None:
    ours, others = bench.jobs["cancelled"], bench.jobs["scancelled"]
    assert ours.reason == "cancelled: autoexp cancel by a test"
    assert others.verdict is Verdict.FAILED
    assert "by someone else" in (others.reason or "")
    assert "by someone else" in (bench.jobs["scancelled_pending"].reason or "")


def test_a_job_that_asks_for_more_time_than_its_partition_has_gets_what_it_has(
    bench: Bench,
) -> None:
    # Uncapped, it would have waited for ever (PartitionTimeLimit).
    assert bench.attempt("timeout").time_limit_min == 30
    assert "RUNNING" in bench.history("timeout")


@pytest.mark.parametrize("name", crowd.REQUEUED)
def test_a_requeued_job_runs_again_under_its_id_and_its_claim(bench: Bench, name: str) -> None:
    attempt, history = bench.attempt(name), bench.history(name)
    assert history.count("RUNNING") == 2, history
    assert "PENDING" in history[history.index("RUNNING") :]
    assert bench.real_jobs(name) == {attempt.job_id}
    assert (bench.ref(name).directory / "claim").read_text() == attempt.job_id
    # The first run is in the log: a requeue does not truncate it.
    words = "PREEMPTION" if name == "preempted_requeued" else "REQUEUE"
    assert words in Path(attempt.log).read_text()


def test_a_requeued_job_is_charged_for_its_first_run_too(bench: Bench) -> None:
    attempt = bench.attempt("requeued")
    assert attempt.gpus == 2
    assert attempt.earlier_gpu_hours > 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("held", "JobHeldUser: held; `scontrol release`"),
        ("held_by_admin", "JobHeldAdmin: held by an admin"),
        ("unreachable", "DependencyNeverSatisfied: the job it depends on failed"),
    ],
)
def test_a_job_that_waits_for_ever_says_for_what(bench: Bench, name: str, words: str) -> None:
    assert bench.attempt(name).state == "PENDING"
    assert (waits(bench.jobs[name]) or "").startswith(words)
    assert not bench.jobs[name].is_over


def ask(bench: Bench) -> dict[str, JobStatus]:
    """What a new monitor would be told, by the job's name."""
    found = SlurmScheduler(cluster()).query(bench.refs())
    keys = {name: bench.attempt(name).key for name in bench.jobs}
    return {name: found[key] for name, key in keys.items() if key in found}


def accounted(bench: Bench) -> bool:
    """Whether accounting knows the end of all jobs that ended."""
    ids = ",".join(str(bench.attempt(name).job_id) for name in STATES)
    found = slurm("sacct", "-X", "-n", "-P", "-j", ids, "-o", "JobID,State").splitlines()
    live = [row for row in found if row.split("|")[1] in ("PENDING", "RUNNING", "REQUEUED")]
    return len(found) >= len(STATES) and not live


def test_accounting_tells_the_same_of_jobs_that_squeue_has_forgotten(
    bench: Bench, forgetful: Commands
) -> None:
    until(lambda: accounted(bench), "accounting, which lags by seconds")
    forgetful.forget()
    told = ask(bench)

    assert forgetful.counts() == {"squeue": 1, "sacct": 1}
    assert {name: told[name].state for name in STATES} == STATES
    for name in STATES:
        attempt = bench.attempt(name)
        assert told[name].nodes == attempt.nodes, name
        assert told[name].ended_at == attempt.ended_at, name
    assert told["held"].state == "PENDING"


@pytest.mark.parametrize("name", CODES)
def test_accounting_tells_the_same_exit_code_and_signal(
    bench: Bench, forgetful: Commands, name: str
) -> None:
    until(lambda: accounted(bench), "accounting, which lags by seconds")
    told = ask(bench)[name]
    assert (told.exit_code, told.signal) == CODES[name]


def test_without_accounting_the_exit_file_tells_of_jobs_that_squeue_has_forgotten(
    bench: Bench, forgetful: Commands
) -> None:
    with undisturbed() as whole:
        whole("stop-accounting")
        told = ask(bench)

    own_end = {name: STATES[name] for name in ("completed", "failed", "killed", "requeued")}
    assert {name: told[name].state for name in own_end} == own_end
    codes = {name: CODES[name] for name in own_end}
    assert {name: (told[name].exit_code, told[name].signal) for name in own_end} == codes
    for name in own_end:
        assert told[name].started_at is not None
        assert told[name].ended_at is not None
    # Of those that left no exit file nothing is known, so nothing changes.
    assert not set(NEVER_RAN) & set(told)
