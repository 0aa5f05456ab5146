"""Submissions around a controller that freezes, or dies with what it had just accepted."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from autoexp.errors import SubmissionUncertain
from autoexp.schedulers.slurm.scheduler import SlurmScheduler
from autoexp.states import Verdict
from tests.slurm.bench import Bench, slurm
from tests.slurm.bench import cluster as small_job
from tests.slurm.cluster import CLUSTER, Cluster
from tests.slurm.commands import Commands
from tests.slurm.submissions import RUN, assert_one_job, resume, runs

pytestmark = pytest.mark.slurm

_TRIES = 8


@contextmanager
def frozen_controller() -> Iterator[None]:
    """The controller takes connections, and answers none, until the end."""
    said = subprocess.run([CLUSTER, "status"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"slurmctld up, pid (\d+)", said)
    assert found is not None, said
    pid = int(found[1])
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_job_that_a_frozen_controller_accepts_after_the_answer_timed_out_is_found(
    cluster: Cluster, bench: Bench, commands: Commands
) -> None:
    del cluster
    bench.submit("first")  # learns the partition's limit, which is asked for once
    bench.add("job", RUN)
    bench.begin("job")
    with frozen_controller(), pytest.raises(SubmissionUncertain, match="Socket timed out"):
        bench.send("job", fresh=True)

    resume(bench.session.path, "job")

    assert_one_job(bench.session.path, ["job"])
    assert len(commands.calls("sbatch")) == 2


@pytest.mark.slow
def test_a_job_that_a_killed_controller_lost_runs_once_and_who_got_its_id_is_a_stranger(
    cluster: Cluster, bench: Bench
) -> None:
    bench.scheduler = SlurmScheduler(small_job(lost_after_s=3))
    name = submit_and_lose(cluster, bench)
    lost = bench.attempt(name)
    stranger = take_id(str(lost.job_id))
    try:
        bench.watch(lambda: not lost.is_open, "the loss")
        assert (lost.state, lost.verdict) == ("LOST", Verdict.CONTINUE)

        bench.begin(name)
        again = bench.send(name, fresh=True)
        bench.wait("COMPLETED", name)
        assert runs(bench, name) == [again]
        # Nobody touched the job that has the lost one's id by now.
        assert slurm("squeue", "-h", "-j", stranger, "-o", "%T").strip() in ("RUNNING", "PENDING")
    finally:
        slurm("scancel", stranger)


def submit_and_lose(cluster: Cluster, bench: Bench) -> str:
    """Kill the controller right after a submission, until one has been forgotten; its name."""
    for number in range(_TRIES):
        name = f"job{number}"
        # Not at once, so that the controller dies first.
        bench.submit(name, RUN, options={"begin": "now+6seconds"})
        cluster("kill-controller")
        cluster("start-controller")
        if not slurm("squeue", "-h", "-t", "all", "--name", bench.attempt(name).key).strip():
            return name
        slurm("scancel", str(bench.attempt(name).job_id))
    raise AssertionError(f"the controller remembered all of {_TRIES} jobs")


def take_id(job_id: str) -> str:
    """Submit strangers until one gets this id."""
    for _ in range(_TRIES):
        given = slurm(
            "sbatch",
            "--parsable",
            "-p",
            "main",
            "--mem=10M",
            "-o",
            "/dev/null",
            "--wrap",
            "sleep 60",
        )
        if given.strip() == job_id:
            return job_id
        slurm("scancel", given.strip())
    raise AssertionError(f"{job_id} was not given again")
