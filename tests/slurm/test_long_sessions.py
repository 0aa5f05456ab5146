"""What takes the cluster a minute: sessions that run side by side, each with its own trouble."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoexp.jobs.record import Attempt, JobRecord
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.flows.sessions import BRANCHES, Make
from tests.patience import until
from tests.slurm.cluster import Cluster, undisturbed
from tests.slurm.commands import Commands, wrapped
from tests.slurm.sessions import sessions_below
from tests.slurm.watching import Seen, accounts, is_accounted, run_to_the_end, seen

pytestmark = [pytest.mark.slurm, pytest.mark.prefect, pytest.mark.slow]

LIMIT = "AssocMaxSubmitJobLimit"
# No GPU, so that they all fit; the dead node is kept for the one that is about it.
N1 = ("slurm.gpus_per_node=0", "slurm.options={mem: 300M, nodelist: n1}")
OTHERS = ("slurm.gpus_per_node=0", "slurm.options={mem: 300M, exclude: n1}")
ALONE = "cooldowns=[]"

Group = dict[str, Seen]


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    with wrapped(tmp_path_factory.mktemp("long")) as found:
        yield found


@pytest.fixture(scope="module")
def group(
    prefect_server: None, commands: Commands, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Group]:
    """All sessions at their end: they take as long as the slowest."""
    del prefect_server
    root = tmp_path_factory.mktemp("long") / "sessions"
    with undisturbed() as cluster, sessions_below(root) as make:
        yield asyncio.run(_run_all(make, cluster, commands))
        commands.behaves()


async def _run_all(make: Make, cluster: Cluster, commands: Commands) -> Group:
    def slowly(milliseconds: int) -> str:
        return f"backend.args.sleep_per_iteration_ms={milliseconds}"

    paths = {
        # 50 s of training, and a warning 10 to 40 s after the start.
        "short": make(
            *(ALONE, *N1, slowly(160), "slurm.partition=short", "project.name=short"),
            *("slurm.time_limit_min=1", "slurm.warn_before_limit_s=20"),
        ),
        "struck": make(ALONE, *OTHERS, slowly(200), "project.name=struck"),
        "chained": make(ALONE, *N1, slowly(20), "slurm.chain=2", "project.name=chained"),
        "bounded": make(
            *(BRANCHES.replace("[100, 200]", "[50, 100, 150]"), *N1, slowly(20)),
            *("slurm.max_jobs=2", "project.name=bounded"),
        ),
        "refused": make(*N1, "slurm.partition=nowhere", "project.name=refused"),
        "postponed": make(ALONE, *N1, "project.name=postponed"),
    }
    told = f"""case "$*" in *-postponed-*) echo 'sbatch: error: {LIMIT}' >&2; exit 1 ;; esac"""
    commands.tell("sbatch", told)
    running = {name: asyncio.create_task(run_to_the_end(path)) for name, path in paths.items()}
    disturbed = asyncio.create_task(_strike(paths["struck"], cluster))
    await _until_tried_twice(commands)
    commands.behaves("sbatch")
    await disturbed
    return dict(zip(running, await asyncio.gather(*running.values()), strict=True))


async def _strike(path: Path, cluster: Cluster) -> None:
    """Kill the slurmd of the node that the training runs on."""
    await seen(path, "checkpoint/struck/50")
    node = Session.load(path).jobs["struck"].attempts[0].nodes
    assert node in ("n2", "n3")
    await asyncio.to_thread(cluster, "kill-node", node[1:])


async def _until_tried_twice(commands: Commands) -> None:
    def tries() -> int:
        return sum("-postponed-" in call.arguments for call in commands.calls("sbatch"))

    await asyncio.to_thread(until, lambda: tries() >= 2, "a second try")


def training(seen: Seen) -> JobRecord:
    return next(iter(seen.session.jobs.values()))


def exit_file(seen: Seen, attempt: Attempt) -> dict[str, object]:
    path = seen.session.path / "attempts" / attempt.key / "exit.json"
    content: dict[str, object] = json.loads(path.read_text())
    return content


def reasons(seen: Seen, job: str) -> set[str]:
    return {glimpse.reason or "" for glimpse in seen.of(job)}


def test_a_training_that_outlives_its_time_limit_is_warned_saves_and_goes_on_to_its_target(
    group: Group,
) -> None:
    ended = group["short"]
    assert ended.state == "COMPLETED", ended.message
    job = training(ended)
    assert job.reason == "reached iteration 300"
    assert len(job.attempts) >= 2
    for attempt in job.attempts[:-1]:
        assert attempt.warned
        assert attempt.verdict is Verdict.CONTINUE
        assert attempt.state == "COMPLETED"
        # In its own words: it was told, and it saved where no checkpoint was due.
        assert "exiting program after receiving SIGTERM" in Path(attempt.log).read_text()
    started = [attempt.first_iteration or 0 for attempt in job.attempts]
    assert started == sorted(set(started))
    assert set(started[1:]) <= set(job.checkpoints)
    for before, after in zip(job.attempts, job.attempts[1:], strict=False):
        assert before.ended_at is not None
        assert after.started_at is not None
        assert before.ended_at <= after.started_at


def test_a_training_goes_on_elsewhere_after_a_node_failure_and_never_has_two_writers(
    group: Group,
) -> None:
    ended = group["struck"]
    assert ended.state == "COMPLETED", ended.message
    job = training(ended)
    first, second = job.attempts
    assert (first.state, first.verdict) == ("NODE_FAIL", Verdict.CONTINUE)
    assert (second.state, second.verdict) == ("COMPLETED", Verdict.FINISHED)
    assert first.nodes != second.nodes

    # The processes on the dead node lived on, until they saw that the job had a new owner.
    end = exit_file(ended, first)
    assert end["superseded"] is True
    assert second.started_at is not None
    assert float(str(end["ended_at"])) > second.started_at.timestamp()
    begun = Path(second.log).read_text().splitlines()[0]
    assert "entropy floor" in begun, begun


def test_the_next_attempt_of_a_chain_waits_for_the_first_and_is_cancelled_at_the_target(
    group: Group,
) -> None:
    ended = group["chained"]
    assert ended.state == "COMPLETED", ended.message
    job = training(ended)
    first, second = job.attempts
    assert first.verdict is Verdict.FINISHED
    assert second.after == first.job_id
    assert {glimpse.open_attempts for glimpse in ended.of("chained")} >= {2}
    # It was in the queue before the first one ended, and never trained.
    assert second.submitted_at is not None
    assert first.ended_at is not None
    assert second.submitted_at < first.ended_at
    assert second.state == "CANCELLED"
    until(lambda: is_accounted(ended.session), "accounting, which lags by seconds")
    (row,) = accounts(ended.session)[str(second.job_id)]
    assert row.state == "CANCELLED"
    # Where SLURM starts it before it is told, it ends before its trainer has done an iteration.
    log = Path(second.log)
    assert not log.exists() or " iteration " not in log.read_text()


def test_max_jobs_bounds_the_queue_and_the_rest_say_that_they_wait(group: Group) -> None:
    ended = group["bounded"]
    assert ended.state == "COMPLETED", ended.message
    assert len(ended.session.jobs) == 4
    at_once = [sum(glimpse.open_attempts for glimpse in moment) for moment in ended.glimpses]
    assert max(at_once) == 2
    waiting = {reason for job in ended.session.jobs for reason in reasons(ended, job)}
    assert "waits for a place in the queue (slurm.max_jobs)" in waiting


def test_a_lasting_refusal_fails_the_job_in_slurms_words(group: Group) -> None:
    ended = group["refused"]
    assert ended.state == "FAILED"
    assert "invalid partition specified: nowhere" in ended.message
    job = training(ended)
    assert (job.reason or "").startswith("not submitted: sbatch: error: invalid partition")
    assert [len(job.attempts) for job in ended.session.jobs.values()] == [1, 0, 0]
    # Its cooldowns have nothing to branch from.
    assert all(
        "never started" in (job.reason or "") for job in list(ended.session.jobs.values())[1:]
    )


def test_a_passing_refusal_leaves_the_job_waiting_with_its_words_until_it_is_taken(
    group: Group,
) -> None:
    ended = group["postponed"]
    assert ended.state == "COMPLETED", ended.message
    job = training(ended)
    assert len(job.attempts) == 1
    said = reasons(ended, "postponed")
    assert any(LIMIT in reason for reason in said), said
