"""Whose a job is, and who ended it: renamed ones, given-away ids, another cluster's name."""

import os
import re
import signal

import pytest

from autoexp.schedulers.base import SubmitOptions, prepare, submit_once
from autoexp.schedulers.slurm.scheduler import SlurmScheduler
from autoexp.states import Verdict
from tests.patience import until
from tests.slurm.bench import FOR_EVER, Bench, cluster, slurm
from tests.slurm.commands import HIDE_ENDED, Commands

pytestmark = pytest.mark.slurm


def test_a_job_that_somebody_renamed_is_watched_and_cancelled_as_before(
    bench: Bench, commands: Commands
) -> None:
    job_id = bench.submit("job", FOR_EVER)
    bench.wait("RUNNING", "job")
    slurm("scontrol", "update", f"JobId={job_id}", "JobName=lr3e-4-run")
    bench.scheduler = SlurmScheduler(cluster(lost_after_s=0.001))
    for _ in range(3):
        assert bench.look()[bench.attempt("job").key].state == "RUNNING"
    bench.scheduler.cancel([bench.ref("job")])
    bench.wait("CANCELLED", "job")

    # What has left the queue is known in accounting by its script.
    commands.tell("squeue", HIDE_ENDED)
    (bench.ref("job").directory / "exit.json").unlink(missing_ok=True)
    told = SlurmScheduler(cluster()).query([bench.ref("job")])
    assert told[bench.attempt("job").key].state == "CANCELLED"


def test_a_job_under_an_id_that_was_ours_is_not_cancelled(bench: Bench) -> None:
    bench.submit("theirs", FOR_EVER)
    bench.submit("ours", FOR_EVER)
    bench.wait("RUNNING", "theirs", "ours")
    ours = bench.ref("ours")._replace(job_id=bench.attempt("theirs").job_id)
    answers = SlurmScheduler(cluster()).cancel([ours])
    assert "another job by now" in answers[ours.key]
    # Nor does an update of one whose id it was reach it.
    waiting = bench.submit("waits", FOR_EVER, options={"hold": True})
    node = slurm("sinfo", "-h", "-N", "-o", "%N").split()[0]
    SlurmScheduler(cluster()).avoid([ours._replace(job_id=waiting)], [node])
    assert f"ExcNodeList={node}" not in slurm("scontrol", "show", "job", waiting)
    bench.look()
    assert bench.attempt("theirs").state == "RUNNING"


def test_a_cluster_that_is_named_is_asked_by_every_command(
    bench: Bench, commands: Commands
) -> None:
    found = re.search(r"ClusterName\s*=\s*(\S+)", slurm("scontrol", "show", "config"))
    assert found is not None
    name = found[1]
    bench.scheduler = SlurmScheduler(cluster(clusters=name))
    assert bench.scheduler.longest_array() == 10000
    bench.submit("runs", FOR_EVER, clusters=name)
    bench.submit("waits", FOR_EVER, clusters=name, options={"hold": True})
    bench.wait("RUNNING", "runs")
    for job in ("runs", "waits"):
        ref = bench.ref(job)
        assert bench.scheduler.find(ref._replace(job_id=None), in_flight=True) == ref.job_id
    node = slurm("sinfo", "-h", "-N", "-o", "%N").split()[0]
    bench.scheduler.avoid([bench.ref("waits")], [node])
    bench.scheduler.cancel(bench.refs())
    bench.wait("CANCELLED", "runs", "waits")
    asked = [call for call in commands.calls() if call.name != "sbatch"]
    assert asked and all(f"--clusters={name}" in call.arguments for call in asked)


def test_who_cancelled_a_job_is_said_by_name(bench: Bench) -> None:
    job_id = bench.submit("job", FOR_EVER)
    bench.wait("RUNNING", "job")
    slurm("scancel", job_id)
    bench.watch(lambda: bench.jobs["job"].is_over, "its verdict")
    assert "CANCELLED by root" in (bench.jobs["job"].reason or "")
    assert "by someone else" in (bench.jobs["job"].reason or "")


def test_where_sacct_never_answers_a_job_that_left_no_trace_comes_to_an_end(
    bench: Bench, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.submit("job", FOR_EVER)
    bench.wait("RUNNING", "job")
    commands.fails("sacct", "sacct: error: Problem talking to the database: Connection refused")
    commands.tell("squeue", HIDE_ENDED)
    monkeypatch.setattr("autoexp.schedulers.slurm.missing._SHORTEST_SILENCE_S", 2.0)
    bench.scheduler = SlurmScheduler(cluster(lost_after_s=0.5))
    (payload,) = until(lambda: payloads(bench), "the payload")
    os.kill(payload, signal.SIGKILL)

    bench.wait("LOST", "job")
    assert "sacct does not answer" in (bench.attempt("job").reason or "")
    assert bench.attempt("job").verdict is Verdict.CONTINUE


def payloads(bench: Bench) -> list[int]:
    """The batch process of the only job."""
    started = bench.ref("job").directory / "started.json"
    found = re.search(r'"pid": (\d+)', started.read_text()) if started.exists() else None
    return [int(found[1])] if found else []


def test_nodes_that_slurm_does_not_know_are_left_out_of_a_submission_and_of_an_update(
    bench: Bench,
) -> None:
    node = slurm("sinfo", "-h", "-N", "-o", "%N").split()[0]
    avoided = ("gpu-node-does-not-exist", f"{node}.cluster.local")
    bench.add("job", FOR_EVER, options={"hold": True})
    attempt, spec, ref = bench.begin("job"), bench.jobs["job"].spec, bench.ref("job")
    prepare(ref, spec, attempt, bench.scheduler.payload_spec(spec, attempt))
    request = SubmitOptions(attempt.name, attempt.log, spec.machine, avoided=avoided)
    attempt.job_id = submit_once(ref, request, bench.scheduler, fresh=True)

    def excluded() -> str:
        told = slurm("scontrol", "show", "job", str(attempt.job_id))
        return told.partition("ExcNodeList=")[2].split()[0]

    assert excluded() == node
    bench.scheduler.avoid([bench.ref("job")], ["gpu-node-does-not-exist"])
    assert excluded() == node


def test_a_trainer_that_dies_of_the_warning_has_reached_its_time_limit(bench: Bench) -> None:
    bench.submit("job", FOR_EVER)
    bench.wait("RUNNING", "job")
    until(lambda: bench.processes("job"), "the command")
    slurm("scancel", "--batch", "--signal=USR1", str(bench.attempt("job").job_id))
    bench.watch(lambda: not bench.attempt("job").is_open, "its end")
    assert bench.history("job")[-1] == "TIMEOUT"
    assert "FAILED" not in bench.history("job")
