"""Whatever SLURM does not answer changes nothing; what it refuses is told in its own words."""

from contextlib import suppress

import pytest

from autoexp.errors import (
    SchedulerUnavailable,
    SubmissionPostponed,
    SubmissionRefused,
    SubmissionUncertain,
)
from autoexp.jobs.record import Attempt
from autoexp.schedulers.base import AttemptRef, JobStatus
from autoexp.schedulers.slurm.scheduler import SlurmScheduler
from tests.patience import until
from tests.slurm.bench import FOR_EVER, Bench, cluster, slurm
from tests.slurm.commands import HIDE_ENDED, Commands

pytestmark = pytest.mark.slurm

GONE = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
DBD_GONE = (
    "sacct: error: slurm_persist_conn_open_without_init: failed to open persistent connection "
    "to host:localhost:6819: Connection refused\n"
    "sacct: error: Problem talking to the database: Connection refused"
)
NO_DBD = "Slurm accounting storage is disabled"
SOON = {"query_timeout_s": 1.0}
"""For commands that do not answer anyway."""


def records(bench: Bench) -> dict[str, str]:
    return {name: job.model_dump_json() for name, job in bench.jobs.items()}


def break_squeue(commands: Commands, how: str) -> None:
    match how:
        case "fails":
            commands.fails("squeue", GONE)
        case "hangs":
            commands.hangs("squeue")
        case "is killed":
            commands.tell("squeue", "kill -9 $$")


@pytest.mark.parametrize("how", ["fails", "hangs", "is killed"])
def test_a_squeue_that_does_not_answer_is_an_outage_and_changes_no_job(
    bench: Bench, commands: Commands, how: str
) -> None:
    bench.submit("runs", FOR_EVER)
    bench.submit("ends")
    bench.wait("RUNNING", "runs")
    bench.scheduler = SlurmScheduler(cluster(**SOON))
    before = records(bench)
    break_squeue(commands, how)

    for _ in range(2):
        with pytest.raises(SchedulerUnavailable, match="squeue"):
            bench.look()
    assert records(bench) == before
    assert commands.counts().get("sacct") is None

    commands.behaves()
    bench.scheduler = SlurmScheduler(cluster())
    bench.wait("COMPLETED", "ends")
    assert bench.attempt("runs").state == "RUNNING"


@pytest.mark.parametrize("how", ["fails", "hangs"])
def test_without_sacct_nothing_is_known_of_jobs_that_left_the_queue_and_all_of_the_others(
    bench: Bench, commands: Commands, how: str
) -> None:
    bench.submit("runs", FOR_EVER)
    bench.submit("dies", FOR_EVER)
    bench.wait("RUNNING", "runs", "dies")
    bench.scheduler.cancel([bench.ref("dies")])
    bench.wait("CANCELLED", "dies")
    # As of a job whose node died: only SLURM can tell.
    (bench.ref("dies").directory / "exit.json").unlink(missing_ok=True)
    commands.tell("squeue", HIDE_ENDED)
    if how == "fails":
        commands.fails("sacct", DBD_GONE)
    else:
        commands.hangs("sacct")

    # However long it lasts: an outage is not minutes of healthy answers without the job.
    scheduler = SlurmScheduler(cluster(lost_after_s=0.001, query_timeout_s=6.0))
    for _ in range(2):
        told = scheduler.query(bench.refs())
        assert told[bench.attempt("runs").key].state == "RUNNING"
        assert bench.attempt("dies").key not in told


def test_a_job_that_nobody_knows_is_lost_only_after_healthy_answers(
    bench: Bench, commands: Commands
) -> None:
    unknown = unknown_ticket(bench)
    scheduler = SlurmScheduler(cluster(lost_after_s=1.0))
    assert scheduler.query([unknown]) == {}

    # The time of an outage does not count.
    commands.fails("squeue", GONE)
    calls = 0

    def refused_for_over_a_second() -> bool:
        nonlocal calls
        with pytest.raises(SchedulerUnavailable):
            scheduler.query([unknown])
        calls += 1
        return calls > 12

    until(refused_for_over_a_second, "an outage")
    commands.behaves()
    assert scheduler.query([unknown]) == {}

    lost = until(lambda: scheduler.query([unknown]), "LOST")
    assert lost[unknown.key].state == "LOST"


@pytest.mark.parametrize("words", [GONE, "scancel: error: something new under the sun"])
def test_words_of_scancel_that_are_of_no_job_are_no_answer_and_it_is_asked_again(
    bench: Bench, commands: Commands, words: str
) -> None:
    scheduler, ref = SlurmScheduler(cluster()), unknown_ticket(bench)
    commands.fails("scancel", words)
    with pytest.raises(SchedulerUnavailable):
        scheduler.cancel([ref])
    of_it = f"scancel: error: Kill job error on job id {ref.job_id}: Access/permission denied"
    commands.fails("scancel", f"{of_it}\nscancel: error: and more")
    assert scheduler.cancel([ref]) == {ref.key: of_it}


def test_where_there_is_no_accounting_a_job_that_squeue_does_not_know_is_lost(
    bench: Bench, commands: Commands
) -> None:
    commands.fails("sacct", NO_DBD)
    scheduler = SlurmScheduler(cluster(lost_after_s=0.5))
    ref = unknown_ticket(bench)
    assert scheduler.query([ref]) == {}
    lost = until(lambda: scheduler.query([ref]), "LOST")
    assert lost[ref.key].state == "LOST"


def unknown_ticket(bench: Bench) -> AttemptRef:
    """An attempt under an id that SLURM has never given."""
    bench.add("unknown")
    attempt = bench.begin("unknown")
    attempt.job_id = "99999999"
    return bench.session.ref(attempt)


def intended(bench: Bench, **settings: object) -> Attempt:
    bench.add("job", FOR_EVER, **settings)
    return bench.begin("job")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"partition": "nowhere"}, "invalid partition specified: nowhere"),
        ({"account": "nobody"}, "Invalid account or account/partition combination specified"),
        ({"qos": "none"}, "Invalid qos specification"),
        ({"gpus_per_node": 9}, "Requested node configuration is not available"),
        ({"options": {"constraint": "cray"}}, "Invalid feature specification"),
    ],
)
def test_a_lasting_refusal_is_told_in_slurms_words(
    bench: Bench, settings: dict[str, object], words: str
) -> None:
    intended(bench, **settings)
    with pytest.raises(SubmissionRefused, match=words):
        bench.send("job", fresh=True)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("AssocMaxSubmitJobLimit", SubmissionPostponed),
        ("AssocGrpSubmitJobsLimit", SubmissionPostponed),
        ("QOSMaxSubmitJobPerUserLimit", SubmissionPostponed),
        ("QOSGrpSubmitJobsLimit", SubmissionPostponed),
        ("Batch job submission failed: Socket timed out on send/recv operation", None),
        ("Batch job submission failed: Unable to contact slurm controller", None),
        ("Batch job submission failed: Connection reset by peer", None),
        ("Batch job submission failed: Protocol authentication error", SubmissionPostponed),
        (
            "Batch job submission failed: Slurm backup controller in standby mode",
            SubmissionPostponed,
        ),
        ("I/O error writing script/environment to file", SubmissionPostponed),
        ("Batch job submission failed: Resource temporarily unavailable", SubmissionPostponed),
    ],
)
def test_a_passing_refusal_leaves_the_attempt_to_be_tried_again(
    bench: Bench, commands: Commands, words: str, error: type[Exception] | None
) -> None:
    attempt = intended(bench)
    # The second line is the same for every limit.
    policy = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
    more = "" if "failed" in words else f"\nsbatch: error: Batch job submission failed: {policy}"
    commands.fails("sbatch", f"sbatch: error: {words}{more}")
    with pytest.raises(error or SubmissionUncertain, match=words):
        bench.send("job", fresh=True)
    assert attempt.is_open
    assert attempt.job_id is None

    commands.behaves()
    # Nobody has accepted it, so nobody needs to be asked for seconds: that is tested elsewhere.
    bench.send("job", fresh=True)
    assert bench.real_jobs("job") == {attempt.job_id}


def test_a_time_limit_is_capped_though_the_partition_could_not_be_asked_at_first(
    bench: Bench, commands: Commands
) -> None:
    # More than the partition allows, which SLURM accepts and never starts.
    bench.add("long", FOR_EVER, partition="short", time_limit_min=30)
    bench.begin("long")
    commands.fails("sinfo", GONE)
    with suppress(SchedulerUnavailable, SubmissionPostponed):
        bench.send("long", fresh=True)
    commands.behaves()
    if bench.attempt("long").job_id is None:
        bench.send("long", fresh=True)

    bench.wait("RUNNING", "long")


def test_a_job_that_only_accounting_knows_lives_for_an_hour_and_is_ended_before_it_is_lost(
    bench: Bench, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.submit("runs", FOR_EVER)
    bench.wait("RUNNING", "runs")
    ref = bench.ref("runs")
    asked = ("sacct", "-X", "-n", "-o", "State", "-j", str(ref.job_id))
    until(lambda: "RUNNING" in slurm(*asked), "sacct")
    commands.tell("squeue", "exit 0")  # healthy, by its own account
    bench.scheduler = SlurmScheduler(cluster(lost_after_s=0.5))

    def told() -> str:
        return bench.look().get(ref.key, JobStatus("")).reason or ""

    until(lambda: told() == "squeue does not list it, sacct says RUNNING", "that it is missed")
    assert bench.attempt("runs").state == "RUNNING"
    assert not commands.calls("scancel")

    monkeypatch.setattr("autoexp.schedulers.slurm.missing._RUNAWAY_AFTER_S", 1.0)
    bench.wait("LOST", "runs")
    assert [call.arguments for call in commands.calls("scancel")] == [
        f"--name {ref.name} {ref.job_id}"
    ]
    until(lambda: not bench.processes("runs"), "the end of it")

    # A monitor that was killed before it could write that down finds it cancelled.
    commands.behaves()
    asked = ("squeue", "-h", "-t", "all", "-o", "%T", "-j", str(ref.job_id))
    until(lambda: slurm(*asked).strip() == "CANCELLED", "its cancellation")
    assert SlurmScheduler(cluster()).query([ref])[ref.key].state == "LOST"


def test_of_a_lost_job_whose_id_was_given_away_the_other_one_is_not_cancelled(
    bench: Bench, commands: Commands
) -> None:
    bench.submit("theirs", FOR_EVER)
    bench.wait("RUNNING", "theirs")
    theirs = bench.attempt("theirs")
    ours = unknown_ticket(bench)._replace(job_id=theirs.job_id)
    scheduler = SlurmScheduler(cluster(lost_after_s=0.001))
    until(lambda: scheduler.query([ours]), "LOST")
    # Whatever is cancelled is cancelled by id and name, and this id has another name.
    names = [call.arguments.split()[:2] for call in commands.calls("scancel")]
    assert all(found == ["--name", ours.name] for found in names)
    assert ours.name != theirs.name
    bench.look()
    assert theirs.state == "RUNNING"
