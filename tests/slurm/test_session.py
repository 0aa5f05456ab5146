"""The session flow on a real SLURM cluster."""

import asyncio
import itertools
from pathlib import Path

import pytest

from autoexp.errors import SchedulerUnavailable
from autoexp.reports.curves import gains
from autoexp.reports.status import status_of
from autoexp.schedulers.registry import scheduler_for
from autoexp.session.session import Session
from tests.flows.commands import autoexp
from tests.flows.runs import subflows
from tests.flows.sessions import Make
from tests.patience import until
from tests.slurm.cluster import Cluster
from tests.slurm.commands import Commands
from tests.slurm.watching import accounts, is_accounted, outcome, run, run_to_the_end, seen

pytestmark = [pytest.mark.slurm, pytest.mark.prefect, pytest.mark.slow]


async def test_the_demo_ends_on_the_cluster_as_it_ends_on_one_machine(make_session: Make) -> None:
    here = make_session("slurm=local")
    there = make_session("backend.args.sleep_per_iteration_ms=20")
    (state, _), on_cluster = await asyncio.gather(run(here), run_to_the_end(there))
    local, session = Session.load(here), on_cluster.session

    assert (state, on_cluster.state) == ("COMPLETED", "COMPLETED")
    assert outcome(session) == outcome(local)
    assert [gain.gain for gain in gains(session)] == [gain.gain for gain in gains(local)]

    # Each job is one SLURM job under the attempt's key, with the GPUs of a whole node.
    until(lambda: is_accounted(session), "accounting, which lags by seconds")
    found = accounts(session)
    for job in session.jobs.values():
        (attempt,) = job.attempts
        (row,) = found[str(attempt.job_id)]
        assert row.name == attempt.key == session.meta.key(job.spec.name, 1)
        assert row.state == "COMPLETED"
        assert "gres/gpu=4" in row.resources
        assert row.nodes == attempt.nodes
        assert f"iteration {job.spec.target_iteration:8d}" in Path(attempt.log).read_text()

    # The cooldowns ran on other nodes while the training went on.
    trunk = session.jobs["demo"].attempts[0]
    for name in ("demo-cd100", "demo-cd200"):
        branch = session.jobs[name].attempts[0]
        assert branch.nodes != trunk.nodes
        assert branch.started_at is not None
        assert trunk.ended_at is not None
        assert branch.started_at < trunk.ended_at

    hours = {job.name: job.gpu_hours for job in status_of(session).jobs}
    for job in session.jobs.values():
        (row,) = found[str(job.attempts[0].job_id)]
        assert hours[job.spec.name] == pytest.approx(4 * row.seconds / 3600)


async def test_twenty_cooldowns_start_within_two_looks_and_cost_one_squeue_a_tick(
    make_session: Make, commands: Commands
) -> None:
    file_tick_s, scheduler_tick_s = 2.0, 1.0
    points = list(range(25, 501, 25))
    path = make_session(
        "backend.args.train_iters=500",
        "backend.args.save_interval=25",
        "backend.args.sleep_per_iteration_ms=10",
        f"cooldowns=[{{at: {points}, decay: {{iterations: 10}}}}]",
        f"monitoring.file_tick_s={file_tick_s}",
        f"slurm.scheduler_tick_s={scheduler_tick_s}",
        "slurm.gpus_per_node=1",
    )
    commands.forget()
    state, message = await run(path)
    assert state == "COMPLETED", message

    session = Session.load(path)
    seen_at = {e.event.key: e.time for e in session.journal.entries}
    late = {}
    for point in points:
        (attempt,) = session.jobs[f"demo-cd{point}"].attempts
        assert attempt.submitted_at is not None
        waited = attempt.submitted_at - seen_at[f"checkpoint/demo/{point}"]
        late[point] = waited.total_seconds()
    assert max(late.values()) < 2 * file_tick_s, late

    counts = commands.counts()
    assert counts["sbatch"] == 21
    assert "scancel" not in counts
    times = [call.time for call in commands.calls("squeue")]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    # The wrapper's own clock trembles under load.
    assert min(gaps) > 0.8 * scheduler_tick_s, gaps


async def test_a_session_whose_controller_and_accounting_are_away_ends_like_any_other(
    make_session: Make, cluster: Cluster, commands: Commands
) -> None:
    await asyncio.to_thread(cluster, "stop-accounting")
    undisturbed = make_session("slurm=local")
    elsewhere = asyncio.create_task(run(undisturbed))
    path = make_session("backend.args.sleep_per_iteration_ms=80")
    running = asyncio.create_task(run_to_the_end(path))
    await seen(path, "checkpoint/demo/50")
    await asyncio.to_thread(cluster, "stop-controller")
    # Each command takes nine seconds to give up; that of least interest fails at once.
    commands.fails("sinfo", "slurm_load_partitions: Unable to contact slurm controller")
    with pytest.raises(SchedulerUnavailable):
        await asyncio.to_thread(cancel, path)
    # Both branch points pass, and the training ends, while nobody can be asked.
    await seen(path, "checkpoint/demo/300")
    commands.behaves()
    await asyncio.to_thread(cluster, "start-controller")
    ended, _ = await asyncio.gather(running, elsewhere)

    assert ended.state == "COMPLETED", ended.message
    assert outcome(ended.session) == outcome(Session.load(undisturbed))
    assert [len(job.attempts) for job in ended.session.jobs.values()] == [1, 1, 1]
    waiting = [glimpse.reason or "" for glimpse in ended.of("demo-cd100")]
    assert any("not submitted yet" in reason for reason in waiting), set(waiting)
    # Nothing was heard of the training, so it stayed what it was.
    assert {glimpse.state for glimpse in ended.of("demo")} <= {
        "WAITING",
        "SUBMITTING",
        "PENDING",
        "RUNNING",
        "COMPLETING",
        "COMPLETED",
    }


def cancel(path: Path) -> None:
    """Try to cancel the training, behind the monitor's back."""
    session = Session.load(path)
    ref = session.ref(session.jobs["demo"].attempts[0])
    scheduler_for(session.experiment).cancel([ref])


async def state_names(path: Path) -> dict[str, str | None]:
    """The names of the states of the first two jobs' runs."""
    shown = {run.name: run.state_name for run in await subflows(Session.load(path))}
    return {name: state for name, state in shown.items() if "@200" not in name}


async def test_cancel_ends_what_runs_and_what_waits(make_session: Make) -> None:
    path = make_session(
        "backend.args.sleep_per_iteration_ms=50", "slurm.options={mem: 300M, nodelist: n1}"
    )
    running = asyncio.create_task(run_to_the_end(path))
    # The training has all GPUs of the one node, so its first cooldown waits.
    await seen(path, "checkpoint/demo/100")
    deadline = asyncio.get_running_loop().time() + 300
    while Session.load(path).jobs["demo-cd100"].state != "PENDING":
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.2)
    # In Prefect it can be told from what runs.
    wanted = {"demo": "Running", "demo @100": "Pending in queue"}
    while (shown := await state_names(path)) != wanted:
        assert asyncio.get_running_loop().time() < deadline, shown
        await asyncio.sleep(0.5)

    answer = await asyncio.to_thread(autoexp, "cancel", path.name, root=path.parent)

    assert answer.returncode == 0, answer.stdout + answer.stderr
    ended = await running
    assert ended.state == "CANCELLED"
    jobs = ended.session.jobs
    # On a slow machine the second cooldown may wait in the queue by then, too.
    begun = {name: job for name, job in jobs.items() if job.attempts}
    assert {"demo", "demo-cd100"} <= set(begun)
    assert {job.state for job in begun.values()} == {"CANCELLED"}
    assert {job.state for name, job in jobs.items() if name not in begun} <= {"WAITING"}
    assert all("autoexp cancel by" in (job.reason or "") for job in jobs.values())
    submitted = [str(job.attempts[0].job_id) for job in begun.values()]
    until(lambda: is_accounted(ended.session), "accounting, which lags by seconds")
    found = accounts(ended.session)
    assert {found[job_id][-1].state for job_id in submitted} == {"CANCELLED"}
