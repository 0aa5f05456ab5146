"""Evidence of a hang on a real cluster: where the ranks of two nodes stand, then the restart."""

import asyncio
import sys
from pathlib import Path

import pytest

from autoexp.reports.explain import explain_job
from autoexp.rules.events import EvidenceCollected
from autoexp.session.session import Session
from tests.flows.sessions import Make, edit_job
from tests.slurm.watching import run

pytestmark = pytest.mark.slurm

# Rank 1 never comes to the collective that the others wait in.
TRAINER = """
import faulthandler, os, signal, time
faulthandler.register(signal.SIGUSR2)

def all_reduce():
    while True:
        time.sleep(1)

def load_batch():
    while True:
        time.sleep(1)

print("ready", os.environ["RANK"], flush=True)
load_batch() if os.environ["RANK"] == "1" else all_reduce()
"""
TWO_NODES = (
    "slurm.launcher=srun",
    "slurm.nodes=2",
    "slurm.tasks_per_node=2",
    "slurm.cpus_per_task=1",
    "slurm.gpus_per_node=0",
)
STALL = (
    "monitoring.inactivity_events={stall: {after: 4s, jobs: [train], actions: ["
    "{restart: {evidence: true}, when: [{max_attempts: 2}]}, "
    "{fail: {reason: it hangs again}, when: [{none_of: [{max_attempts: 2}]}]}]}}"
)


@pytest.mark.prefect
@pytest.mark.slow
async def test_a_hang_on_two_nodes_is_told_and_then_restarted(make_session: Make) -> None:
    path = make_session(
        *TWO_NODES,
        STALL,
        "cooldowns=[]",
        "backend.stack_signal=SIGUSR2",
        "slurm.options={mem: 100M}",
    )
    edit_job(path, "demo", lambda _: [sys.executable, "-c", TRAINER])
    await asyncio.wait_for(run(path), 900)
    session = Session.load(path)
    job = session.jobs["demo"]
    assert [attempt.state for attempt in job.attempts] == ["CANCELLED", "CANCELLED"]
    (event,) = [e.event for e in session.journal.entries if isinstance(e.event, EvidenceCollected)]
    assert event.problem is None
    assert str(event.sentence).startswith("rank 1 on n")
    assert str(event.sentence).endswith(
        "stands in load_batch (<string>:11), 3 others wait in all_reduce"
    )
    files = {file.name.partition(".")[0] for file in Path(event.path).glob("n*.json")}
    assert len(files) == 2
    *_, last = explain_job(path, "demo").sentences
    assert str(event.sentence) in last and event.path in last
    assert job.reason == "it hangs again"
