"""A cooldown on its own, from a checkpoint of a training that has ended long ago."""

from pathlib import Path

import pytest
from prefect import State

from autoexp.flows.cooldown import cooldown
from autoexp.flows.train import train
from autoexp.reports.curves import read_curve
from autoexp.session.session import Session
from autoexp.states import Kind, Verdict
from autoexp.storage.places import sessions_root
from tests.flows.sessions import Make

pytestmark = pytest.mark.prefect


async def test_a_cooldown_branches_from_a_checkpoint_of_another_session(make_session: Make) -> None:
    parent = make_session("cooldowns=[]", "backend.args.train_iters=100")
    await train(session=parent.name, return_state=True)
    checkpoint = parent / "output" / "demo" / "checkpoints" / "iter_0000100"

    state: State[object] = await cooldown(
        checkpoint=str(checkpoint),
        decay={"iterations": 40, "shape": "linear"},  # type: ignore[arg-type]
        config=str(parent / "config" / "resolved.yaml"),
        return_state=True,
    )

    assert state.is_completed(), state.message
    (path,) = [p for p in sessions_root().iterdir() if "-cd100-" in p.name]
    session = Session.load(path)
    (job,) = session.jobs.values()
    assert (job.spec.kind, job.verdict, job.iteration) == (Kind.COOLDOWN, Verdict.FINISHED, 140)
    assert job.spec.name == "demo-cd100"
    # It went on from there, with the learning rate on its way to nothing.
    curve = read_curve(path, "demo-cd100")
    assert curve.iterations[0] > 100
    assert curve.learning_rates[-1] < 0.1 * curve.learning_rates[0]
    assert checkpoint.exists()


async def test_a_checkpoint_that_is_not_there_makes_no_session(
    make_session: Make, tmp_path: Path
) -> None:
    state: State[object] = await cooldown(
        checkpoint=str(tmp_path / "iter_0000300"),
        decay={"iterations": 40},  # type: ignore[arg-type]
        return_state=True,
    )

    assert state.is_failed()
    assert "no complete checkpoint" in (state.message or "")
    assert not sessions_root().exists() or not list(sessions_root().iterdir())
