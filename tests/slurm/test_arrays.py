"""Jobs of one kind that start together, as one array of the real cluster."""

import asyncio
import re
from pathlib import Path

import pytest

from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.flows.sessions import Make, edit_job
from tests.patience import until
from tests.slurm.bench import slurm
from tests.slurm.commands import Commands
from tests.slurm.watching import run_to_the_end

pytestmark = [pytest.mark.slurm, pytest.mark.prefect, pytest.mark.slow]

# All from one checkpoint, so that all start at the same look.
NAMES = ("a", "b", "c", "d")
BRANCHES = ", ".join(f"{{at: [100], name: {name}, decay: {{iterations: 60}}}}" for name in NAMES)


async def test_cooldowns_that_start_together_are_one_array_of_which_one_task_goes_on_alone(
    make_session: Make, commands: Commands
) -> None:
    path = make_session(
        *("slurm.arrays=true", "slurm.array_parallel=2", "slurm.gpus_per_node=0"),
        *(f"cooldowns=[{BRANCHES}]", "backend.args.sleep_per_iteration_ms=30"),
    )
    # The second one is sent home once, healthy, before it has trained.
    early = '[ -e ../sent-home ] && exec "$@"; touch ../sent-home; exit 0'
    edit_job(path, "demo-cd100-b", lambda command: ["/bin/sh", "-c", early, "sh", *command])
    commands.forget()

    running = asyncio.create_task(run_to_the_end(path))
    asked = await asyncio.to_thread(until, lambda: throttle(path), "the array")
    ended = await running

    assert ended.state == "COMPLETED", ended.message
    assert asked == "2"
    jobs = [ended.session.jobs[f"demo-cd100-{name}"] for name in NAMES]
    assert {job.verdict for job in jobs} == {Verdict.FINISHED}
    firsts = [job.attempts[0] for job in jobs]
    (array,) = {str(attempt.job_id).partition("_")[0] for attempt in firsts}
    assert [attempt.job_id for attempt in firsts] == [f"{array}_{task}" for task in range(4)]
    assert [len(job.attempts) for job in jobs] == [1, 2, 1, 1]
    again = jobs[1].attempts[1]
    assert (again.array_index, again.verdict) == (None, Verdict.FINISHED)
    # The training, the array, and the one that came again.
    assert len(commands.calls("sbatch")) == 3
    for job in jobs:
        assert f"iteration {160:8d}" in Path(job.attempts[-1].log).read_text()


def throttle(path: Path) -> str | None:
    """How many tasks of the array may run at once, as SLURM has it."""
    attempts = Session.load(path).jobs["demo-cd100-a"].attempts
    if not attempts or attempts[0].job_id is None:
        return None
    found = re.search(
        r"ArrayTaskThrottle=(\d+)", slurm("scontrol", "show", "job", attempts[0].job_id)
    )
    return found[1] if found else "none"


async def test_an_array_above_the_submit_limit_goes_as_two_once_nothing_else_is_in_the_queue(
    make_session: Make, commands: Commands
) -> None:
    path = make_session(
        *("slurm.arrays=true", "slurm.gpus_per_node=0"),
        *(f"cooldowns=[{BRANCHES}]", "backend.args.sleep_per_iteration_ms=10"),
    )
    # A user who may submit two jobs at once: the indices of an array are split by commas.
    commands.tell(
        "sbatch",
        'for script in "$@"; do :; done\n'
        "tasks=$(sed -n 's/^#SBATCH --array=//p' \"$script\" | tr ',' '\\n' | wc -l)\n"
        'if [ "$tasks" -gt 2 ]; then\n'
        "  echo 'sbatch: error: AssocMaxSubmitJobLimit' >&2\n"
        "  echo 'sbatch: error: Batch job submission failed: Job violates accounting/QOS policy "
        "(job submit limit, user'\"'\"'s size and/or time limits)' >&2\n"
        "  exit 1\n"
        "fi",
    )
    ended = await run_to_the_end(path)
    commands.behaves("sbatch")

    assert ended.state == "COMPLETED", ended.message
    jobs = [ended.session.jobs[f"demo-cd100-{name}"] for name in NAMES]
    assert {job.verdict for job in jobs} == {Verdict.FINISHED}
    ids = [str(job.attempts[0].job_id) for job in jobs]
    assert len(set(ids)) == 4
    assert len({job_id.partition("_")[0] for job_id in ids}) == 2
    for job in jobs:
        assert f"iteration {160:8d}" in Path(job.attempts[0].log).read_text()
