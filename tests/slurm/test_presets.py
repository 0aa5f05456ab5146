"""What `incurable` and `in_job_restart` make of trainings on a cluster that die, and come back."""

import asyncio
import sys
from pathlib import Path

import pytest

from autoexp.jobs.record import JobRecord
from autoexp.session.action_records import ActionStatus
from autoexp.states import Verdict
from tests.flows.sessions import Make, edit_job
from tests.slurm.watching import Seen, run_to_the_end
from tests.sources import ROOT

pytestmark = [pytest.mark.slurm, pytest.mark.prefect]

RECORDED = ROOT / "tests" / "data" / "rules"
SMALL = ("cooldowns=[]", "slurm.gpus_per_node=0")
# A training dies behind its first checkpoint, and its last line says of what.
DIES = '"$@" --fail-at-iteration 120; echo "{line}" >&2; exit 1'
# As ft_launcher does where it gives up.
ASKS_FOR_NO_RESTART = '"$@" --fail-at-iteration 120; exit 93'
# As torchrun does: a worker that fails is begun again from the newest checkpoint, in the same job.
COMES_BACK = """
"$@" --fail-at-iteration 60; {says}
"$@" --fail-at-iteration 120; {says}
exec "$@"
"""
# A worker that comes no further, begun again and again.
COMES_NO_FURTHER = """
"$@" --fail-at-iteration 20
for _ in 1 2 3 4 5 6 7 8 9 10; do {says}; done
sleep 600
"""
MISSING = "open('/nowhere/vocab.json')"


def lines(rule: str) -> list[str]:
    """The recorded lines that fire a rule."""
    fires, _, _ = (RECORDED / f"{rule}.txt").read_text().partition("# does not fire\n")
    return fires.splitlines()[1:]


def in_a_shell(path: Path, job: str, script: str) -> None:
    edit_job(path, job, lambda command: ["/bin/sh", "-c", script, "sh", *command])


def states(job: JobRecord) -> list[str]:
    return [attempt.state for attempt in job.attempts]


async def test_what_cannot_be_mended_fails_after_one_attempt_and_what_mends_itself_is_left_alone(
    make_session: Make,
) -> None:
    """Two sessions beside each other, to take as long as one."""
    dying = make_session(
        *SMALL, "monitoring=incurable", "project.name=dies", "backend.args.seed=1,2,3,4,5,6"
    )
    edit_job(dying, "dies-seed1", lambda command: [*command, "--no-such-flag", "3"])
    edit_job(dying, "dies-seed2", lambda _: [sys.executable, "-c", MISSING])
    for number, rule in enumerate(("quota", "corrupt_index", "other_checkpoint"), 3):
        (line,) = lines(rule)
        in_a_shell(dying, f"dies-seed{number}", DIES.format(line=line))
    in_a_shell(dying, "dies-seed6", ASKS_FOR_NO_RESTART)

    coming = make_session(
        *SMALL, "monitoring=in_job_restart", "project.name=comes", "backend.args.seed=1,2"
    )
    (timeout,) = lines("nccl_timeout")
    launcher = next(line for line in lines("restarts_inside") if "failed (exitcode" in line)
    says = f"echo '{timeout}'; echo '{launcher}'"
    in_a_shell(coming, "comes-seed1", COMES_BACK.format(says=says))
    in_a_shell(coming, "comes-seed2", COMES_NO_FURTHER.format(says=says))

    dead, came = await asyncio.gather(run_to_the_end(dying), run_to_the_end(coming))
    assert reasons(dead) == {
        "dies-seed1": "the trainer does not know: --no-such-flag 3",
        "dies-seed2": "there is no /nowhere/vocab.json",
        "dies-seed3": "a disk quota is exceeded: free space, then `autoexp retry`",
        "dies-seed4": "the index of a data set is corrupt: /data/web_text_document.idx",
        "dies-seed5": "its checkpoint was saved with tensor_model_parallel_size 4, "
        "and 2 is asked for",
        "dies-seed6": "exit code 93: its launcher asks for no restart",
    }
    assert {tuple(states(job)) for job in dead.session.jobs.values()} == {("FAILED",)}
    # Those that had come so far `production` alone would restart: that is overruled, and no error.
    crashes = {a.event.job: a for a in dead.session.actions.values() if a.rule == "crash"}
    assert [crashes[f"dies-seed{n}"].status for n in range(3, 7)] == [ActionStatus.DONE] * 4

    mended, stuck = came.session.jobs.values()
    assert (mended.verdict, mended.iteration) == (Verdict.FINISHED, 300), mended.reason
    assert states(mended) == ["COMPLETED"]
    assert stuck.verdict is Verdict.FAILED
    assert stuck.reason == (
        "it restarts inside of its job again and again, after three attempts: exit code 1"
    )
    assert states(stuck) == ["CANCELLED"] * 3


def reasons(seen: Seen) -> dict[str, str | None]:
    return {name: job.reason for name, job in seen.session.jobs.items()}
