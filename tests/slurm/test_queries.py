"""What is asked of SLURM about jobs: as little as possible, and of our own jobs only."""

import pytest

from autoexp.schedulers.slurm.scheduler import SlurmScheduler
from tests.slurm.bench import FOR_EVER, Bench, cluster, slurm
from tests.slurm.commands import HIDE_ENDED, Commands

pytestmark = pytest.mark.slurm

HELD = {"options": {"hold": True}}


def test_a_look_costs_one_command_and_a_cancellation_two_for_one_job_and_for_two_hundred(
    bench: Bench, commands: Commands
) -> None:
    bench.submit("j0", FOR_EVER, **HELD)
    commands.forget()
    bench.look()
    assert commands.counts() == {"squeue": 1}

    for number in range(1, 200):
        bench.submit(f"j{number}", FOR_EVER, **HELD)
    commands.forget()
    told = bench.look()
    assert commands.counts() == {"squeue": 1}
    assert len(told) == 200
    assert {status.state for status in told.values()} == {"PENDING"}

    commands.forget()
    answers = bench.scheduler.cancel(bench.refs())
    assert commands.counts() == {"squeue": 1, "scancel": 1}  # whose they are now, and then
    assert set(answers) == set(told)
    bench.watch(
        lambda: all(attempt.state == "CANCELLED" for attempt in map(bench.attempt, bench.jobs)),
        "200 cancelled jobs",
    )


def test_sacct_is_asked_once_and_only_for_jobs_that_left_the_queue(
    bench: Bench, commands: Commands
) -> None:
    for name in ("a", "b", "c"):
        bench.submit(name)
    bench.submit("waits", FOR_EVER, **HELD)
    bench.submit("runs", FOR_EVER)
    bench.wait("COMPLETED", "a", "b", "c")
    bench.wait("RUNNING", "runs")
    refs = bench.refs()

    commands.forget()
    SlurmScheduler(cluster()).query(refs)
    assert commands.counts() == {"squeue": 1}

    commands.tell("squeue", HIDE_ENDED)
    commands.forget()
    told = SlurmScheduler(cluster()).query(refs)
    assert commands.counts() == {"squeue": 1, "sacct": 1}
    ended = ",".join(str(bench.attempt(name).job_id) for name in ("a", "b", "c"))
    assert f"-j {ended}" in commands.calls("sacct")[0].arguments
    assert {key.split("-")[-3]: status.state for key, status in told.items()} == {
        "a": "COMPLETED",
        "b": "COMPLETED",
        "c": "COMPLETED",
        "waits": "PENDING",
        "runs": "RUNNING",
    }


def test_a_job_id_under_another_name_is_not_our_job(bench: Bench, commands: Commands) -> None:
    bench.submit("theirs")
    bench.submit("ours", FOR_EVER, **HELD)
    bench.wait("COMPLETED", "theirs")
    # As after a controller that lost our job and gave its id away.
    ours = bench.ref("ours")._replace(job_id=bench.attempt("theirs").job_id)

    assert SlurmScheduler(cluster()).query([ours]) == {}
    commands.tell("squeue", HIDE_ENDED)
    assert SlurmScheduler(cluster()).query([ours]) == {}
    lost = SlurmScheduler(cluster(lost_after_s=0.001))
    lost.query([ours])
    assert lost.query([ours])[ours.key].state == "LOST"


def test_an_attempt_is_found_by_its_name_whether_it_waits_runs_or_has_ended(
    bench: Bench, commands: Commands
) -> None:
    bench.submit("waits", FOR_EVER, **HELD)
    bench.submit("runs", FOR_EVER)
    bench.submit("ended")
    bench.wait("RUNNING", "runs")
    bench.wait("COMPLETED", "ended")

    for name in ("waits", "runs", "ended"):
        ref = bench.ref(name)
        assert bench.scheduler.find(ref._replace(job_id=None), in_flight=False) == ref.job_id
    commands.tell("squeue", HIDE_ENDED)
    ref = bench.ref("ended")
    assert bench.scheduler.find(ref._replace(job_id=None), in_flight=False) == ref.job_id


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SQUEUE_PARTITION", "short"),
        ("SQUEUE_STATES", "SUSPENDED"),
        ("SQUEUE_FORMAT2", "JobID"),
        ("SQUEUE_ACCOUNT", "root"),
        ("SLURM_TIME_FORMAT", "relative"),
        ("TZ", "Asia/Kathmandu"),
    ],
)
def test_what_the_user_prefers_squeue_to_show_hides_no_job_and_moves_no_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    bench.submit("runs", FOR_EVER)
    bench.wait("RUNNING", "runs")
    refs = bench.refs()
    told = SlurmScheduler(cluster()).query(refs)

    monkeypatch.setenv(name, value)

    assert SlurmScheduler(cluster()).query(refs) == told


def test_pending_jobs_are_told_together_to_avoid_a_node(bench: Bench) -> None:
    bench.submit("a", FOR_EVER, **HELD)
    bench.submit("b", FOR_EVER, **HELD)
    node = slurm("sinfo", "-h", "-N", "-o", "%N").split()[0]
    bench.scheduler.avoid(bench.refs(), [node])
    for name in ("a", "b"):
        told = slurm("scontrol", "show", "job", str(bench.attempt(name).job_id))
        assert f"ExcNodeList={node}\n" in told
