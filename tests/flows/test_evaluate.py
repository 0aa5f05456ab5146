"""An evaluation on its own, of a checkpoint of a training that has ended long ago."""

import pytest
from prefect import State

from autoexp.flows.evaluate import evaluate
from autoexp.flows.train import train
from autoexp.session.session import Session
from autoexp.states import Kind, Verdict
from autoexp.storage.places import sessions_root
from tests.flows.sessions import Make

pytestmark = pytest.mark.prefect

# Braces of its own are written twice.
SCORE = """
import json, sys
json.dump({{"iteration": int(sys.argv[2]), "named": len(sys.argv[1])}}, open("scores.json", "w"))
"""


async def test_a_checkpoint_is_evaluated_and_its_scores_are_read(make_session: Make) -> None:
    parent = make_session("cooldowns=[]", "backend.args.train_iters=100")
    await train(session=parent.name, return_state=True)
    checkpoints = parent / "output" / "demo" / "checkpoints"
    # The training's price, a hundred hours, is not what this one has to be agreed to for.
    price = ("slurm.gpus_per_node=1", "budget.seconds_per_iteration=3600", "budget.confirm_above=1")

    state: State[object] = await evaluate(
        checkpoint=str(checkpoints / "iter_0000100"),
        command=("{python}", "-c", SCORE, "{checkpoint_path}", "{checkpoint_iteration}"),
        scores="scores.json",
        minutes=30,
        config=str(parent / "config" / "resolved.yaml"),
        overrides=price,
        return_state=True,
    )

    assert state.is_completed(), state.message
    (path,) = [p for p in sessions_root().iterdir() if "-eval100-" in p.name]
    (job,) = Session.load(path).jobs.values()
    assert (job.spec.name, job.spec.kind) == ("demo-eval100", Kind.EVALUATE)
    assert (job.verdict, len(job.attempts)) == (Verdict.FINISHED, 1)
    assert job.scores["iteration"] == 100
    assert job.spec.planned is not None
    assert job.spec.planned.gpu_hours == 0.5


async def test_a_name_that_stands_for_nothing_makes_no_session(make_session: Make) -> None:
    parent = make_session("cooldowns=[]", "backend.args.train_iters=100")
    await train(session=parent.name, return_state=True)
    before = sorted(sessions_root().iterdir())

    state: State[object] = await evaluate(
        checkpoint=str(parent / "output" / "demo" / "checkpoints" / "iter_0000100"),
        command=("echo", "{checkpoint_pth}"),
        config=str(parent / "config" / "resolved.yaml"),
        return_state=True,
    )

    assert state.is_failed()
    assert "checkpoint_path" in (state.message or "")
    assert sorted(sessions_root().iterdir()) == before
