"""A node that pretends to be sick: it is named, the job goes elsewhere, and others avoid it too."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from autoexp.model import now
from autoexp.nodes.avoid_list import AvoidList
from autoexp.nodes.policy import NodePolicy
from autoexp.operations import action_runs, phases
from autoexp.operations.step_runs import begin_submission
from autoexp.session.session import Session
from autoexp.states import Kind, Verdict
from tests.core.story import LOG
from tests.flows.sessions import Make
from tests.patience import until
from tests.slurm.bench import FOR_EVER, Bench, slurm
from tests.slurm.watching import run

pytestmark = pytest.mark.slurm

TRAINER = (sys.executable, "-c", "import time; print('trains', flush=True); time.sleep(600)")
TWO_NODES: dict[str, Any] = {
    "kind": Kind.TRAIN,
    "launcher": "srun",
    "nodes": 2,
    "gpus_per_node": 0,
}


def with_policy(bench: Bench, policy: NodePolicy, *names: str) -> None:
    """Have the session, and these jobs, check their nodes."""
    experiment = bench.session.experiment.model_copy(update={"nodes": policy})
    bench.session.meta = bench.session.meta.model_copy(update={"experiment": experiment})
    for name in names:
        job = bench.jobs[name]
        job.spec = job.spec.model_copy(update={"nodes": policy})
        bench.session.save_job(job)


def submit(bench: Bench, name: str) -> None:
    """Submit the next attempt as the flow does: with the nodes to avoid."""

    submission = begin_submission(bench.session, name, LOG)
    assert submission is not None
    job_id = submission.run(bench.scheduler)
    bench.session.record_submission(bench.jobs[name], bench.attempt(name), job_id)


def act(bench: Bench) -> None:
    for action in bench.session.pending_actions():
        monitor = bench._monitor
        assert monitor is not None
        phases.run(action_runs.carry_out(action, monitor, LOG), bench.scheduler)


def excluded(job_id: str) -> str:
    described = slurm("scontrol", "show", "job", job_id)
    return described.partition("ExcNodeList=")[2].split()[0]


def test_a_sick_node_is_named_the_job_runs_elsewhere_and_queued_jobs_are_told(
    bench: Bench, tmp_path: Path
) -> None:
    disks, listed = tmp_path / "disks", tmp_path / "shared" / "nodes.jsonl"
    for healthy in ("n1", "n3"):
        (disks / healthy).mkdir(parents=True)
    policy = NodePolicy(
        check="basic", disks=(f"{disks}/{{hostname}}",), avoid_file=str(listed), slowest=0.01
    )
    bench.add("job", TRAINER, options={"exclude": "n3"}, **TWO_NODES)
    with_policy(bench, policy, "job")
    submit(bench, "job")
    bench.watch(lambda: bench.jobs["job"].attempts[0].verdict is not None, "the end of the check")
    first = bench.jobs["job"].attempts[0]
    assert first.state == "NODE_FAIL"
    assert first.sick_nodes == {"n2": f"{disks}/n2: No such file or directory"}
    assert first.verdict is Verdict.CONTINUE and bench.jobs["job"].attempts_without_progress == 0
    assert "trains" not in bench.log("job")
    assert "node n2 is sick" in bench.log("job")

    # One that waits in the queue is told, and what it excluded by itself stays so.
    bench.scheduler._cluster.options["exclude"] = "n3"
    queued = bench.submit("queued", FOR_EVER, options={"begin": "now+1hour", "exclude": "n3"})
    bench.wait("PENDING", "queued")
    act(bench)
    assert [entry.node for entry in AvoidList(listed).current(now())] == ["n2"]
    assert set(excluded(queued).split(",")) == {"n2", "n3"}

    # The next attempt goes elsewhere; so does another session's, which reads the same list.
    job = bench.jobs["job"]
    settings = job.spec.machine.model_copy(update={"options": {"mem": "100M"}})
    job.spec = job.spec.model_copy(update={"machine": settings})
    submit(bench, "job")
    until(lambda: "trains" in bench.log("job"), "the trainer")
    bench.wait("RUNNING", "job")
    assert bench.attempt("job").nodes == "n[1,3]"
    assert {path.stem for path in (bench.ref("job").directory / "check").iterdir()} == {"n1", "n3"}

    other = Bench.create(tmp_path / "other")
    other.add("other", TRAINER, **{**TWO_NODES, "nodes": 1}, options={"begin": "now+1hour"})
    with_policy(other, policy, "other")
    submit(other, "other")
    assert excluded(str(other.attempt("other").job_id)) == "n2"
    other.close()


def test_a_check_of_ones_own_that_hangs_on_a_node_is_bounded_and_names_it(bench: Bench) -> None:
    own = ("sh", "-c", '[ "$SLURMD_NODENAME" != n1 ] || exec sleep 600')
    policy = NodePolicy(command=own, timeout=5)
    bench.add("job", TRAINER, options={"exclude": "n3"}, **TWO_NODES)
    with_policy(bench, policy, "job")
    submit(bench, "job")
    bench.watch(lambda: bench.jobs["job"].attempts[0].verdict is not None, "the end of the check")
    assert bench.jobs["job"].attempts[0].sick_nodes == {"n1": "did not answer the check within 5 s"}


@pytest.mark.prefect
@pytest.mark.slow
async def test_three_sessions_at_once_meet_a_sick_node_and_all_end_well_elsewhere(
    make_session: Make, tmp_path: Path
) -> None:
    disks, listed = tmp_path / "disks", tmp_path / "nodes.jsonl"
    for healthy in ("n2", "n3"):
        (disks / healthy).mkdir(parents=True)
    where = f"disks: ['{disks}/{{hostname}}'], avoid_file: {listed}"
    policy = f"{{check: basic, {where}, slowest: 0.01}}"
    small = ("slurm.gpus_per_node=1", "cooldowns=[]", f"nodes={policy}")
    paths = [make_session(*small, f"project.name=p{number}") for number in range(3)]
    ended = await asyncio.gather(*(run(path) for path in paths))
    assert [state for state, _ in ended] == ["COMPLETED"] * 3, ended
    for path in paths:
        session = Session.load(path)
        (job,) = session.jobs.values()
        given_back = [attempt for attempt in job.attempts if attempt.sick_nodes]
        assert {node for attempt in given_back for node in attempt.sick_nodes} <= {"n1"}
        assert job.attempts[-1].nodes in ("n2", "n3")
        assert job.attempts_without_progress == 0
        assert {action.status for action in session.actions.values()} <= {"done"}
    entries = AvoidList(listed).read()
    assert entries and {entry.node for entry in entries} == {"n1"}
    assert len({entry.id for entry in entries}) == len(listed.read_text().splitlines())
