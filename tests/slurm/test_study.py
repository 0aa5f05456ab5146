"""A sweep with its cooldowns as arrays of the real cluster; its hours as accounting has them."""

import asyncio
import re

import pytest

from autoexp.config.compose import compose
from autoexp.jobs.budget import total
from autoexp.jobs.spec import JobSpec
from autoexp.planning.study import plan_study
from autoexp.reports.results import rows
from autoexp.session.measured_speed import with_measured_speed
from autoexp.session.session import Session
from autoexp.states import Kind, Verdict
from tests.flows.sessions import BRANCHES, SMALL, Make
from tests.patience import until
from tests.slurm.commands import Commands
from tests.slurm.watching import accounts, is_accounted, run_to_the_end

pytestmark = [pytest.mark.slurm, pytest.mark.prefect]

GPUS = 1
STUDY = (
    *("backend.args.lr=3e-3,1e-2,3e-2", "backend.args.global_batch_size=16,32"),
    *("backend.args.hidden_size=16", "backend.args.sleep_per_iteration_ms=20"),
    *("slurm.arrays=true", f"slurm.gpus_per_node={GPUS}", "budget.seconds_per_iteration=0.02"),
)


async def test_a_sweep_of_eighteen_jobs_goes_as_arrays_and_its_hours_agree_with_accounting(
    make_session: Make, commands: Commands
) -> None:
    path = make_session(*STUDY)
    commands.forget()
    ended = await run_to_the_end(path)

    assert ended.state == "COMPLETED", ended.message
    session = ended.session
    assert len(session.jobs) == 18
    assert {job.verdict for job in session.jobs.values()} == {Verdict.FINISHED}
    assert {len(job.attempts) for job in session.jobs.values()} == {1}
    trunks = [job.attempts[0] for job in session.jobs.values() if job.spec.kind is Kind.TRAIN]
    (array,) = {str(attempt.job_id).partition("_")[0] for attempt in trunks}
    assert {attempt.job_id for attempt in trunks} == {f"{array}_{task}" for task in range(6)}
    # The cooldowns of one look are an array too.
    assert len(commands.calls("sbatch")) < 18

    await asyncio.to_thread(until, lambda: is_accounted(session), "accounting")
    hours = accounted_hours(session)
    for row in rows([session]):
        # Accounting counts whole seconds.
        assert row["gpu_hours_spent"] == pytest.approx(hours[row["job"]], abs=2 * GPUS / 3600)
        assert row["gpu_hours_planned"] is not None
    spent = sum(hours.values())
    assert sum(row["gpu_hours_spent"] for row in rows([session])) == pytest.approx(spent, rel=0.2)
    assert total(again(session)).gpu_hours == pytest.approx(spent, rel=0.4)


def accounted_hours(session: Session) -> dict[str, float]:
    """GPU hours of each job, as SLURM's accounting allotted them."""
    found = accounts(session)
    hours = {}
    for name, job in session.jobs.items():
        (row,) = found[str(job.attempts[0].job_id)]
        gpus = re.search(r"gres/gpu=(\d+)", row.resources)
        assert gpus is not None
        hours[name] = row.seconds * int(gpus[1]) / 3600
    return hours


def again(session: Session) -> tuple[JobSpec, ...]:
    """The same sweep, planned with the speed that it was measured to have."""
    speed = f"budget={{measured_in: {session.id}, startup_s: 1.5}}"
    asked = [*SMALL, "slurm=local_cluster", BRANCHES, *STUDY[:-1], speed]
    return plan_study(with_measured_speed(compose("demo", asked)), session.path / "output").jobs
