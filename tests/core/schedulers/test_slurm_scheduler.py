"""What is made of SLURM's answers, and of none: its commands are scripts of recorded words."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from autoexp.config.compose import compose
from autoexp.errors import (
    BadInput,
    SchedulerUnavailable,
    SubmissionPostponed,
    SubmissionRefused,
    SubmissionUncertain,
    SubmitLimitReached,
)
from autoexp.jobs.record import JobRecord
from autoexp.jobs.summary import waits
from autoexp.operations.cancel import cancel_directly
from autoexp.resources.machines import SlurmCluster
from autoexp.schedulers.base import AttemptRef, JobStatus, SubmitOptions, apply
from autoexp.schedulers.slurm.commands import run
from autoexp.schedulers.slurm.parsing import read_limit, read_sacct, read_squeue
from autoexp.schedulers.slurm.scheduler import SlurmScheduler
from autoexp.schedulers.slurm.script import is_passing, read_answer
from autoexp.session.session import Session
from tests.builders import TINY, attempt_of, create, spec_of
from tests.fakes.slurm import COMMANDS, Fakes

REFUSED = (
    "sacct: error: slurm_persist_conn_open_without_init: failed to open persistent connection to "
    "localhost:6819: Connection refused\nsacct: error: Problem talking to the database: "
    "Connection refused"
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """`clock(seconds)` lets time pass for schedulers."""
    passed = 0.0

    def go(seconds: float) -> None:
        nonlocal passed
        passed += seconds

    mine = SimpleNamespace(monotonic=lambda: passed, sleep=go)
    monkeypatch.setattr("autoexp.schedulers.slurm.scheduler.time", mine)
    return go


@pytest.fixture
def ref(tmp_path: Path) -> AttemptRef:
    directory = tmp_path / "attempts" / "s1-j-a1"
    directory.mkdir(parents=True)
    return AttemptRef("s1-j-a1", directory, "s1-j-a1", "batch-7f3a.sh", "41")


def listed(
    name: str = "s1-j-a1", state: str = "RUNNING", reason: str = "None", job_id: str = "41"
) -> str:
    """A line of squeue for SQUEUE_FORMAT."""
    cells = (job_id, state, "0", reason, "1700000000", "N/A", "n1", name)
    return "|".join(f"{cell:>20}" for cell in cells) + "|"


def request_of(cluster: SlurmCluster, ref: AttemptRef, **changes: Any) -> SubmitOptions:
    return SubmitOptions(ref.name, str(ref.directory / "job.log"), cluster)._replace(**changes)


def submit(cluster: SlurmCluster, ref: AttemptRef, **changes: Any) -> str:
    """Submit through a new scheduler."""
    return SlurmScheduler(cluster).submit(ref, request_of(cluster, ref, **changes), 0)


def write_exit_file(ref: AttemptRef) -> None:
    """What the payload leaves at a good end."""
    (ref.directory / "exit.json").write_text(
        f'{{"job_id": "41", "exit_code": 0, "signal": null, "reason": null, "warned": false,'
        f'"limit": false, "superseded": false, "started_at": 1, "ended_at": {time.time()}}}'
    )


def script_of(ref: AttemptRef) -> str:
    return (ref.directory / ref.script).read_text()


# The logs that SLURM writes


@pytest.mark.parametrize("top", [0o700, 0o750], ids=oct)
def test_a_log_is_there_before_slurm_makes_it_by_the_umask(
    fakes: Fakes, ref: AttemptRef, top: int
) -> None:
    fakes.says("sbatch", "12")
    ref.directory.chmod(top)
    submit(SlurmCluster(), ref)
    submit(SlurmCluster(), ref, log=str(ref.directory / "task-%a.log"), tasks=(0, 7))
    for name in ("job.log", "task-0.log", "task-7.log"):
        assert (ref.directory / name).stat().st_mode & 0o777 == 0o600 | top & 0o040
    assert "--open-mode=append" in script_of(ref)


# What sbatch says


@pytest.mark.parametrize(
    ("text", "job_id", "cluster"),
    [
        ("12\n", "12", None),
        ("12;doduo\n", "12", "doduo"),
        ("Submitted batch job 12\n", "12", None),
        ("Submitted batch job 12 on cluster doduo\n", "12", "doduo"),
        ("----\n  Welcome to the Lonestar 5 Supercomputer\n----\n--> Verifying...OK\n"
         "Submitted batch job 12\r\n", "12", None),
        ("2026\n12\n", "12", None),
    ],
)  # fmt: skip
def test_a_job_id_is_read_behind_whatever_a_site_says_before_it(
    text: str, job_id: str, cluster: str | None
) -> None:
    assert read_answer(text) == (job_id, cluster)


@pytest.mark.parametrize("text", ["", "Welcome to node 7\n", "job 12 is fine\n", "-12\n"])
def test_an_answer_without_a_job_id_is_uncertain(text: str) -> None:
    with pytest.raises(SubmissionUncertain, match="not a job id"):
        read_answer(text)


POLICY = (
    "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit "
    "limit, user's size and/or time limits)"
)


@pytest.mark.parametrize(
    "words",
    [
        *(f"sbatch: error: {limit}\n{POLICY}" for limit in (
            "AssocMaxSubmitJobLimit", "AssocGrpSubmitJobsLimit", "QOSMaxSubmitJobPerUserLimit",
            "QOSGrpSubmitJobsLimit", "MaxSubmitJobsPerAccount", "AccountingPolicy",
        )),
        POLICY,
        "sbatch: error: MaxSubmitJobsPerUser",
        "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying\n"
        "sbatch: error: Batch job submission failed: Resource temporarily unavailable",
        "sbatch: error: Slurm job queue full, sleeping and retrying\n"
        "sbatch: error: Batch job submission failed: Unable to create job record, try again",
        "sbatch: error: Batch job submission failed: Requested nodes are busy",
        "sbatch: error: Batch job submission failed: Rate limit exceeded, please retry later",
        "sbatch: error: Batch job submission failed: Controller is in standby mode, try a "
        "different controller",
        "sbatch: error: Batch job submission failed: Required partition not available (inactive "
        "or drain)",
        "FAILED\n\n  [*] Too many simultaneous jobs in queue.\n  --> Max job limits for you: 50",
        "sbatch: error: You have reached the maximum number of jobs in this queue",
        "sbatch: error: job submit limit reached for user ann",
    ],
)  # fmt: skip
def test_a_limit_on_the_number_of_jobs_passes(words: str) -> None:
    assert is_passing(words)


@pytest.mark.parametrize(
    "words",
    [
        *(f"sbatch: error: {limit}\n{POLICY}" for limit in (
            "QOSMaxWallDurationPerJobLimit", "AssocMaxNodePerJobLimit", "QOSMaxGRESPerJob",
            "QOSMinGRES", "AssocGrpCPUMinutesLimit", "MaxMemPerLimit", "PartitionTimeLimit",
        )),
        "sbatch: error: Batch job submission failed: Invalid account or account/partition "
        "combination specified",
        "sbatch: error: Batch job submission failed: Invalid qos specification",
        "sbatch: error: Batch job submission failed: Requested node configuration is not available",
        "sbatch: error: invalid partition specified: nowhere",
        "sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or "
        "exceeds some limit)",
    ],
)  # fmt: skip
def test_a_limit_on_the_size_of_a_job_is_lasting(words: str) -> None:
    assert not is_passing(words)


def test_a_submission_limit_postpones_and_a_greeting_is_no_answer(
    fakes: Fakes, ref: AttemptRef
) -> None:
    fakes.fails("sbatch", POLICY)
    with pytest.raises(SubmitLimitReached, match="submit limit"):
        submit(SlurmCluster(), ref)
    fakes.fails("sbatch", "sbatch: error: Batch job submission failed: Requested nodes are busy")
    with pytest.raises(SubmissionPostponed) as postponed:
        submit(SlurmCluster(), ref)
    assert not isinstance(postponed.value, SubmitLimitReached)
    fakes.says("sbatch", "Welcome", "Submitted batch job 41")
    assert submit(SlurmCluster(), ref) == "41"


def test_a_refusal_is_sbatchs_words_in_one_line(fakes: Fakes, ref: AttemptRef) -> None:
    fakes.fails(
        "sbatch",
        "sbatch: error: invalid partition specified: gpu\n"
        "sbatch: error: Batch job submission failed: Invalid partition name specified",
    )
    with pytest.raises(SubmissionRefused) as refused:
        submit(SlurmCluster(), ref)
    assert str(refused.value) == (
        "invalid partition specified: gpu; "
        "Batch job submission failed: Invalid partition name specified"
    )


# One of several clusters


@pytest.mark.parametrize("settings", [{"clusters": "doduo"}, {"options": {"clusters": "doduo"}}])
def test_every_command_asks_the_cluster_that_jobs_go_to(
    fakes: Fakes, ref: AttemptRef, settings: dict[str, Any], clock: Callable[[float], None]
) -> None:
    cluster = SlurmCluster(time_limit_min=10, **settings)
    scheduler = SlurmScheduler(cluster)
    fakes.says("sbatch", "41;doduo")
    job_id = scheduler.submit(ref, request_of(cluster, ref, time_limit_min=10), 0)
    scheduler.query([ref])
    fakes.says("squeue", listed())
    scheduler.cancel([ref])
    scheduler.avoid([ref], ["n1"])
    scheduler.longest_array()
    fakes.says("squeue", f"41|/x/s1-j-a1/{ref.script}")
    assert scheduler.find(ref, in_flight=True) == "41"

    assert job_id == "41"
    assert "#SBATCH --clusters=doduo\n" in script_of(ref)
    for name in COMMANDS[1:]:
        calls = fakes.calls(name)
        assert calls and all(call.startswith("--clusters=doduo ") for call in calls), name


def test_without_a_choice_no_command_names_a_cluster(fakes: Fakes, ref: AttemptRef) -> None:
    fakes.says("sbatch", "41")
    submit(SlurmCluster(), ref)
    SlurmScheduler(SlurmCluster()).query([ref])
    assert "clusters" not in script_of(ref)
    assert not any("clusters" in call for call in fakes.calls("squeue"))


def test_a_job_that_a_site_sends_to_another_cluster_is_taken_back_and_refused(
    fakes: Fakes, ref: AttemptRef
) -> None:
    fakes.says("sbatch", "41;doduo")
    with pytest.raises(SubmissionRefused, match=r"slurm\.clusters=doduo"):
        submit(SlurmCluster(), ref)
    assert fakes.calls("scancel") == ["--clusters=doduo --name s1-j-a1 41"]


def test_a_job_for_another_cluster_than_the_sessions_is_not_submitted(
    fakes: Fakes, ref: AttemptRef
) -> None:
    scheduler = SlurmScheduler(SlurmCluster())
    with pytest.raises(SubmissionRefused, match="for cluster doduo"):
        scheduler.submit(ref, request_of(SlurmCluster(clusters="doduo"), ref), 0)
    assert fakes.calls("sbatch") == []


@pytest.mark.parametrize("several", ["all", "a,b", "doduo;rm", ""])
def test_one_cluster_is_named_or_none(several: str) -> None:
    if not several:
        assert SlurmCluster(clusters=several).at is None
        return
    for settings in ({"clusters": several}, {"options": {"clusters": several}}):
        with pytest.raises(ValidationError, match="one cluster"):
            SlurmCluster.model_validate(settings)


@pytest.mark.parametrize("name", ["SLURM_CLUSTERS", "SBATCH_CLUSTERS"])
def test_the_cluster_that_the_shell_chooses_is_the_sessions(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "doduo")
    machine = compose("demo", ["slurm=local_cluster"]).experiment.slurm
    assert isinstance(machine, SlurmCluster)
    assert machine.at == "doduo"
    monkeypatch.setenv(name, "a,b")
    with pytest.raises(BadInput, match="one cluster"):
        compose("demo", ["slurm=local_cluster"])


def test_what_slurms_own_client_needs_is_kept_and_an_outer_jobs_variables_are_not(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_SACK_SOCKET")
    for name in (*needed, "SLURM_CLUSTERS", "SLURM_JOB_ID", "SBATCH_PARTITION"):
        monkeypatch.setenv(name, "x")
    fakes.tell("scontrol", "env | grep -E '^(SLURM|SBATCH)_' | cut -d= -f1")
    assert set(run(["scontrol"], 20).split()) == set(needed)


# Caps


@pytest.mark.parametrize("how", ["fails", "hangs", "cannot be run"])
def test_limits_that_nobody_tells_stop_no_submission(
    fakes: Fakes, ref: AttemptRef, how: str
) -> None:
    cluster = SlurmCluster(query_timeout_s=0.3)
    fakes.says("sbatch", "41")
    for name in ("sinfo", "scontrol"):
        if how == "fails":
            fakes.fails(name, "slurm_load_partitions: Access/permission denied")
        elif how == "hangs":
            fakes.tell(name, "exec sleep 60")
        else:
            (fakes.folder / name).write_bytes(b"\0")
    assert submit(cluster, ref, time_limit_min=30) == "41"
    assert "#SBATCH --time=30:00\n" in script_of(ref)
    assert SlurmScheduler(cluster).longest_array() == 1


def test_a_job_that_went_uncapped_and_waits_for_ever_is_shortened(
    fakes: Fakes, ref: AttemptRef
) -> None:
    cluster = SlurmCluster(partition="short")
    scheduler = SlurmScheduler(cluster)
    fakes.fails("sinfo", "slurm_load_partitions: Socket timed out on send/recv operation")
    fakes.says("sbatch", "41")
    scheduler.submit(ref, request_of(cluster, ref, time_limit_min=30), 0)
    fakes.says("sinfo", "short 1:00")
    fakes.says("squeue", listed(state="PENDING", reason="Priority"))
    scheduler.query([ref])
    assert fakes.calls("scontrol") == []
    fakes.says("squeue", listed(state="PENDING", reason="PartitionTimeLimit"))
    scheduler.query([ref])
    assert fakes.calls("scontrol") == ["update JobId=41 TimeLimit=1:00"]


@pytest.mark.parametrize(
    ("partition", "answer", "wanted", "asked"),
    [
        ("main,short", ("main* infinite", "short 1:00"), 10, "10:00"),
        ("short,long", ("short 1:00", "long 5:00"), 10, "5:00"),
        ("short", ("short 1:00",), 10, "1:00"),
        (None, ("main* 2:00:00", "short 1:00"), 300, "120:00"),
        ("main", ("main* n/a",), 10, "10:00"),
    ],
)
def test_of_several_partitions_the_longest_caps_the_limit_and_it_is_said(
    fakes: Fakes, ref: AttemptRef, caplog: pytest.LogCaptureFixture,
    partition: str | None, answer: tuple[str, ...], wanted: float, asked: str,
) -> None:  # fmt: skip
    fakes.says("sbatch", "41")
    fakes.says("sinfo", *answer)
    submit(SlurmCluster(partition=partition), ref, time_limit_min=wanted)
    assert f"#SBATCH --time={asked}\n" in script_of(ref)
    assert bool(caplog.messages) == (asked != f"{wanted}:00")
    assert all(f"not {wanted} min" in message for message in caplog.messages)


# Nodes


UNKNOWN_NODE = "sbatch: error: Batch job submission failed: Invalid node name specified"


def test_a_node_that_slurm_does_not_know_is_left_out_of_the_submission(
    fakes: Fakes, ref: AttemptRef, caplog: pytest.LogCaptureFixture
) -> None:
    fakes.says("sinfo", "n1", "n2", "lrdn0001", "n1")
    fakes.tell(
        "sbatch",
        f'grep -q "exclude=.*ghost" "$2" && {{ echo "{UNKNOWN_NODE}" >&2; exit 1; }}\necho 41',
    )
    names = ("ghost", "n2", "lrdn0001.leonardo.local")
    scheduler = SlurmScheduler(SlurmCluster())
    for _ in range(2):
        request = request_of(SlurmCluster(), ref, avoided=names)
        assert scheduler.submit(ref, request, 0) == "41"
        assert "#SBATCH --exclude=lrdn0001,n2\n" in script_of(ref)
    assert (len(fakes.calls("sbatch")), len(fakes.calls("sinfo"))) == (3, 1)
    assert caplog.messages == ["SLURM does not know a node ghost: it is not excluded"]


def test_without_the_names_of_nodes_none_is_avoided_and_the_users_own_mistake_is_told(
    fakes: Fakes, ref: AttemptRef
) -> None:
    fakes.fails("sinfo", "slurm_load_node: Access/permission denied")
    fakes.tell(
        "sbatch", f'grep -q exclude "$2" && {{ echo "{UNKNOWN_NODE}" >&2; exit 1; }}\necho 41'
    )
    assert submit(SlurmCluster(), ref, avoided=("ghost",)) == "41"
    cluster = SlurmCluster(options={"exclude": "mine"})
    with pytest.raises(SubmissionRefused, match="Invalid node name"):
        submit(cluster, ref, avoided=("ghost",))


def test_pending_jobs_are_told_to_avoid_the_nodes_that_slurm_knows(
    fakes: Fakes, ref: AttemptRef
) -> None:
    fakes.says("sinfo", "n1", "n2")
    fakes.says("squeue", listed(state="PENDING"))
    fakes.tell(
        "scontrol", 'case "$*" in *ghost*) echo "Invalid node name specified" >&2; exit 1;; esac'
    )
    SlurmScheduler(SlurmCluster()).avoid([ref], ["ghost", "n2"])
    assert fakes.calls("scontrol")[-1] == "update JobId=41 ExcNodeList=n2"
    SlurmScheduler(SlurmCluster()).avoid([ref], ["ghost"])
    assert len(fakes.calls("scontrol")) == 3


# Who is whose


def test_a_job_that_somebody_renamed_is_still_ours_and_is_asked_about_once(
    fakes: Fakes, ref: AttemptRef
) -> None:
    script = f"/x/s1-j-a1/{ref.script}"
    fakes.tell(
        "squeue",
        f"""case "$*" in
*%o*) echo '41|{script}' ;;
*) echo '{listed("lr3e-4-run")}' ;;
esac""",
    )
    scheduler = SlurmScheduler(SlurmCluster(lost_after_s=0.001))
    for _ in range(3):
        assert scheduler.query([ref])[ref.key].state == "RUNNING"
    assert len(fakes.calls("squeue")) == 4
    assert scheduler.cancel([ref])[ref.key] == "scancel 41: accepted"


def test_a_job_is_found_after_a_kill_though_somebody_renamed_it_and_among_many(
    fakes: Fakes, ref: AttemptRef
) -> None:
    fakes.says(
        "squeue",
        "39|/other/s1-j-a1/batch-0000.sh",
        f"40|/x/s1-j-a2/{ref.script}",
        f"41|/x/s1-j-a1/{ref.script}",
    )
    assert SlurmScheduler(SlurmCluster()).find(ref, in_flight=False) == "41"
    assert "--name" not in fakes.calls("squeue")[0]


def test_a_renamed_job_that_left_the_queue_is_known_in_accounting_by_its_script(
    fakes: Fakes, ref: AttemptRef
) -> None:
    fakes.tell(
        "sacct",
        f"""case "$*" in
*SubmitLine*) echo '41|sbatch --parsable /x/s1-j-a1/{ref.script}' ;;
*) echo '41|lr3e-4-run|NODE_FAIL|0:0|0:0|1700000000|1700000100|n1' ;;
esac""",
    )
    assert SlurmScheduler(SlurmCluster()).query([ref])[ref.key].state == "NODE_FAIL"


@pytest.mark.parametrize("script", ["/x/s1-j-a2/batch-7f3a.sh", "/home/ann/run.sh", ""])
def test_a_job_of_our_id_and_another_script_is_not_ours_and_is_not_cancelled(
    fakes: Fakes, ref: AttemptRef, script: str
) -> None:
    fakes.tell(
        "squeue",
        f"""case "$*" in
*%o*) echo '41|{script}' ;;
*) echo '{listed("unrelated")}' ;;
esac""",
    )
    scheduler = SlurmScheduler(SlurmCluster())
    assert scheduler.query([ref]) == {}
    assert SlurmScheduler(SlurmCluster()).cancel([ref]) == scheduler.cancel([ref])
    assert "another job by now" in scheduler.cancel([ref])[ref.key]
    assert fakes.calls("scancel") == []


def test_cancelling_unwatched_an_attempt_whose_id_is_another_jobs_says_so_and_what_to_do(
    fakes: Fakes, tmp_path: Path
) -> None:
    words = [*TINY, "cooldowns=[]", "slurm=local_cluster", "slurm.gpus_per_node=0"]
    path = create(compose("demo", words), tmp_path / "sessions", session_id="s1")
    with Session.hold(path) as (session, _):
        job = session.jobs["tiny"]
        attempt = session.begin_attempt(job)
        assert attempt is not None
        session.record_submission(job, attempt, "41")
    fakes.tell(
        "squeue",
        f"""case "$*" in
*%o*) echo '41|/elsewhere/unrelated.sh' ;;
*) echo '{listed("unrelated")}' ;;
esac""",
    )
    outcome = cancel_directly(path, (), "bob", patience_s=0.0)
    assert outcome.problem is not None
    assert f"{attempt.key} was job 41, and that id is another job's by now" in outcome.problem
    assert "`autoexp resume` finds out" in outcome.problem
    assert fakes.calls("scancel") == []


def test_an_id_that_became_another_jobs_a_moment_ago_is_neither_cancelled_nor_changed(
    fakes: Fakes, ref: AttemptRef
) -> None:
    scheduler = SlurmScheduler(SlurmCluster())
    fakes.says("squeue", listed(state="PENDING"))
    assert scheduler.query([ref])[ref.key].state == "PENDING"
    fakes.says("squeue", listed("unrelated", state="PENDING"))
    assert "another job by now" in scheduler.cancel([ref])[ref.key]
    scheduler.avoid([ref], ["n1"])
    assert fakes.calls("scancel") == fakes.calls("scontrol") == []


def test_a_job_that_squeue_does_not_list_is_cancelled_by_its_name_too(
    fakes: Fakes, ref: AttemptRef
) -> None:
    fakes.says("squeue")
    assert "accepted" in SlurmScheduler(SlurmCluster()).cancel([ref])[ref.key]
    assert fakes.calls("scancel") == ["--name s1-j-a1 41"]


def test_a_cancellation_that_cannot_ask_whose_a_job_is_gets_no_answer(
    fakes: Fakes, ref: AttemptRef
) -> None:
    fakes.fails("squeue", "slurm_load_jobs error: Unable to contact slurm controller")
    with pytest.raises(SchedulerUnavailable):
        SlurmScheduler(SlurmCluster()).cancel([ref])
    assert fakes.calls("scancel") == []


def test_who_cancelled_a_job_is_said(fakes: Fakes, ref: AttemptRef) -> None:
    fakes.says("squeue", listed(state="CANCELLED"))
    scheduler = SlurmScheduler(SlurmCluster())
    fakes.says("sacct", "41|s1-j-a1|RUNNING|0:0|0:0|1700000000|Unknown|n1")
    assert scheduler.query([ref]) == {}  # accounting lags
    for cell, who in (("0", "by root"), ("4000000", "by the user of id 4000000")):
        fakes.says("sacct", f"41|s1-j-a1|CANCELLED by {cell}|0:15|0:0|1700000000|1700000100|n1")
        told = scheduler.query([ref])[ref.key]
        assert (told.state, told.reason) == ("CANCELLED", who)
    fakes.fails("sacct", REFUSED)
    assert scheduler.query([ref])[ref.key].state == "CANCELLED"


# Answers that cannot be true


def test_an_end_that_accounting_denies_and_no_exit_file_tells_is_not_believed_at_once(
    fakes: Fakes, ref: AttemptRef, clock: Callable[[float], None]
) -> None:
    scheduler = SlurmScheduler(SlurmCluster())
    running = "41|s1-j-a1|RUNNING|0:0|0:0|1700000000|Unknown|n1"
    fakes.says("squeue", listed(state="COMPLETED"))
    fakes.says("sacct", running)
    for _ in range(4):
        assert scheduler.query([ref]) == {}
        clock(10)
    fakes.says("squeue", listed())  # it was a lie
    assert scheduler.query([ref])[ref.key].state == "RUNNING"
    fakes.says("squeue", listed(state="COMPLETED"))
    assert scheduler.query([ref]) == {}
    clock(61)  # accounting never hears of the end
    assert scheduler.query([ref])[ref.key].state == "COMPLETED"


@pytest.mark.parametrize(
    "lie",
    ["", listed()[:30], "slurm_load_jobs: weird ||||||||||", listed(job_id="7", name="other-j-a1")],
    ids=["nothing", "the half of it", "garbage", "somebody else's job"],
)
def test_an_answer_of_squeue_that_lies_loses_no_job_that_accounting_sees_running(
    fakes: Fakes, ref: AttemptRef, clock: Callable[[float], None], lie: str
) -> None:
    scheduler = SlurmScheduler(SlurmCluster(lost_after_s=10))
    fakes.says("sacct", "41|s1-j-a1|RUNNING|0:0|0:0|1700000000|Unknown|n1")
    fakes.says("squeue", listed())
    assert scheduler.query([ref])[ref.key].state == "RUNNING"
    fakes.says("squeue", lie)
    for _ in range(20):
        clock(10)
        assert scheduler.query([ref]).get(ref.key, JobStatus("RUNNING")).state == "RUNNING"
    assert fakes.calls("scancel") == []


def test_accounting_is_not_asked_about_a_job_that_has_told_its_good_end(
    fakes: Fakes, ref: AttemptRef
) -> None:
    write_exit_file(ref)
    fakes.says("squeue", listed(state="COMPLETED"))
    assert SlurmScheduler(SlurmCluster()).query([ref])[ref.key].state == "COMPLETED"
    assert fakes.calls("sacct") == []


ODD = ("²", "٣", "9" * 5000, "253402300800", "99999999999999", "-1", "1.5", "nan", "\x00", "｜", "")


@pytest.mark.parametrize("odd", ODD, ids=ascii)
def test_whatever_stands_where_slurm_has_a_number_is_never_an_error(odd: str) -> None:
    for place in range(8):
        cells = ["41", "COMPLETED", "0", "None", "1700000000", "1700000001", "n1", "s1-j-a1"]
        cells[place] = odd
        assert len(read_squeue("|".join(cells) + "|")) == 1
        cells = ["41", "s1-j-a1", "FAILED", "0:0", "0:0", "1700000000", "1700000001", "n1"]
        cells[place] = odd
        assert len(read_sacct("|".join(cells))) == 1
    for text in (odd, f"{odd}-00:00:01", f"1-{odd}:00:00", f"00:{odd}", "1:2:3:4:5"):
        assert read_limit(text) > 0 or text == odd
    (row,) = read_squeue(f"41|COMPLETED|{odd}|None|{odd}|{odd}|n1|s1-j-a1|")
    seen = row.status
    assert (seen.started_at, seen.ended_at, seen.exit_code) == (None, None, None)


# No answer from accounting


@pytest.mark.parametrize("how", ["is refused", "cannot be run"])
def test_where_sacct_never_answers_a_job_that_squeue_forgot_comes_to_an_end(
    fakes: Fakes,
    ref: AttemptRef,
    clock: Callable[[float], None],
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    if how == "is refused":
        fakes.fails("sacct", REFUSED)
    else:
        (fakes.folder / "sacct").write_bytes(b"\0")
    scheduler = SlurmScheduler(SlurmCluster(lost_after_s=300))
    fakes.says("squeue", listed())
    assert scheduler.query([ref])[ref.key].state == "RUNNING"
    fakes.says("squeue")
    told: list[JobStatus | None] = []
    for _ in range(13):
        told.append(scheduler.query([ref]).get(ref.key))
        clock(100)
    assert told[:4] == [None, None, None, told[3]]
    warned = JobStatus("RUNNING", "squeue does not list it, and sacct does not answer")
    assert told[3:9] == [warned] * 6
    assert all(last is not None and last.state == "LOST" for last in told[9:])
    assert told[9] is not None and "sacct does not answer" in (told[9].reason or "")
    assert fakes.calls("scancel")[0] == "--name s1-j-a1 41"
    assert caplog.messages == [f"{ref.key}: {warned.reason}"]


def test_an_outage_of_squeue_or_an_answer_of_sacct_starts_the_count_of_its_silence_anew(
    fakes: Fakes, ref: AttemptRef, clock: Callable[[float], None]
) -> None:
    scheduler = SlurmScheduler(SlurmCluster(lost_after_s=300))
    running = "41|s1-j-a1|RUNNING|0:0|0:0|1700000000|Unknown|n1"
    fakes.says("sacct", running)
    scheduler.query([ref])
    for _ in range(5):
        fakes.fails("sacct", REFUSED)
        clock(899)
        assert scheduler.query([ref]).get(ref.key, JobStatus("")).state != "LOST"
        fakes.says("sacct", running)
        clock(1)
        scheduler.query([ref])
    fakes.fails("sacct", REFUSED)
    fakes.fails("squeue", "slurm_load_jobs error: Socket timed out on send/recv operation")
    clock(100_000)
    with pytest.raises(SchedulerUnavailable):
        scheduler.query([ref])
    fakes.says("squeue")
    clock(100_000)
    assert scheduler.query([ref]) == {}


def test_the_exit_file_comes_before_the_silence_of_accounting(
    fakes: Fakes, ref: AttemptRef
) -> None:
    fakes.fails("sacct", REFUSED)
    write_exit_file(ref)
    told = SlurmScheduler(SlurmCluster()).query([ref])
    assert told[ref.key].state == "COMPLETED"


def test_an_empty_claim_is_none(fakes: Fakes, ref: AttemptRef) -> None:
    (ref.directory / "claim").touch()
    fakes.says("squeue", listed(state="COMPLETED"))
    assert SlurmScheduler(SlurmCluster()).query([ref])[ref.key].state == "COMPLETED"


def test_the_expected_start_of_a_pending_job_comes_with_the_row_that_is_asked_for_anyway() -> None:
    rows = "41|PENDING|0|Priority|{start}|N/A||s1-j-a1|\n42|RUNNING|0|None|{start}|N/A|n1|s1-j-a1|"
    pending, running = read_squeue(rows.format(start=1_790_000_000))
    assert pending.status.expected_at == running.status.started_at
    assert (pending.status.started_at, running.status.expected_at) == (None, None)
    (unknown,) = read_squeue(rows.format(start="N/A").splitlines()[0])
    assert unknown.status.expected_at is None


def test_an_expected_start_is_written_when_it_moves_by_minutes_and_is_told() -> None:
    job = JobRecord(spec=spec_of("true"), launched=True, attempts=[attempt_of(job_id="1")])
    (attempt,) = job.attempts
    at = datetime(2026, 11, 29, 12, tzinfo=UTC)
    for seconds, expected in ((0, 0), (200, 0), (400, 400)):
        moved = at + timedelta(seconds=seconds)
        apply("job", attempt, JobStatus("PENDING", "Priority", expected_at=moved))
        assert attempt.expected_at == at + timedelta(seconds=expected)
    local = attempt.expected_at.astimezone()
    assert waits(job) == f"Priority; expected to start {local:%d %b %H:%M}"
    apply("job", attempt, JobStatus("RUNNING"))
    assert attempt.expected_at is None
