"""A plan above its budget: asked for in Prefect, and not forgotten when the process dies."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import pytest
from prefect import get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterName,
    FlowRunFilterParentFlowRunId,
)
from prefect.client.schemas.objects import FlowRun
from prefect.states import AwaitingRetry, Crashed, Pending

from autoexp.flows.train import train
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.flows.sessions import SMALL, Make

pytestmark = pytest.mark.prefect

ENTRYPOINT = "autoexp.flows.train.train"
COSTLY = [
    *SMALL,
    "cooldowns=[]",
    "backend.args.train_iters=50",
    "slurm.gpus_per_node=1",
    "budget.seconds_per_iteration=3600",
    "budget.confirm_above=49",
]


@pytest.mark.parametrize("go_ahead", [True, False])
async def test_a_deployed_flow_pauses_for_approval_with_the_plan_as_its_text(
    make_session: Make, tmp_path: Path, go_ahead: bool
) -> None:
    del make_session
    root = tmp_path / "sessions"
    running = asyncio.create_task(train("demo", COSTLY, return_state=True))  # type: ignore[call-overload]
    async with get_client() as client:
        run = await question(client)
        assert not list(root.glob("*"))
        schema = await read_description(client, run.id)
        assert "1 jobs: 1 train; 50.00 GPU hours: budget.confirm_above is 49" in schema
        assert "demo  train  0 → 50" in schema
        await answer(client, run, go_ahead=go_ahead)
    state = await running

    sessions = [path.parent for path in root.glob("[!.]*/session.json")]
    if go_ahead:
        assert state.is_completed(), state.message
        assert {job.verdict for job in Session.load(sessions[0]).jobs.values()} == {
            Verdict.FINISHED
        }
    else:
        assert state.is_failed()
        assert "the plan was rejected: said ann" in str(state.message)
        assert sessions == []


@pytest.mark.parametrize("answered", ["afterwards", "while nobody waits"])
async def test_a_flow_that_is_killed_while_it_waits_asks_again_unless_it_was_answered(
    make_session: Make, tmp_path: Path, answered: str
) -> None:
    del make_session
    parameters = {"config": "demo", "overrides": COSTLY}
    async with get_client() as client:
        run = await client.create_flow_run(train, parameters=parameters, state=Pending())
        process = execute(run.id)
        first = await question(client, run.id)
        process.kill()
        process.wait()
        if answered == "while nobody waits":
            await answer(client, first)
        # As a worker and its automation do.
        for state in (Crashed(), AwaitingRetry(), Pending()):
            await client.set_flow_run_state(run.id, state, force=True)
        process = execute(run.id)
        if answered == "afterwards":
            await answer(client, await question(client, run.id, besides=[first.id]))
        assert await asyncio.to_thread(process.wait, 60) == 0
        ended = (await client.read_flow_run(run.id)).state
        asked = {run.id: run.state for run in await questions(client, run.id)}

    assert ended is not None
    assert ended.is_completed(), ended.message
    assert len(list((tmp_path / "sessions").glob("[!.]*/session.json"))) == 1
    assert all(state is not None and state.is_final() for state in asked.values())
    assert len(asked) == (2 if answered == "afterwards" else 1)


def execute(flow_run: UUID) -> "subprocess.Popen[bytes]":
    """What a worker starts for a flow run."""
    environment = {**os.environ, "PREFECT__FLOW_RUN_ID": str(flow_run)}
    command = [sys.executable, "-m", "prefect.flow_engine", ENTRYPOINT]
    return subprocess.Popen(command, env=environment)


async def questions(client: PrefectClient, parent: UUID | None = None) -> list[FlowRun]:
    """All that a flow run has asked, or anyone."""
    below = FlowRunFilterParentFlowRunId(any_=[parent]) if parent else None
    name = FlowRunFilterName(any_=["approve the plan"])
    return await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(name=name, parent_flow_run_id=below)
    )


async def question(
    client: PrefectClient, parent: UUID | None = None, besides: Sequence[UUID] = ()
) -> FlowRun:
    """The one that waits for an answer, once its form is there."""
    for _ in range(1500):
        for run in await questions(client, parent):
            waits = run.state is not None and run.state.is_paused() and run.id not in besides
            if waits and await read_description(client, run.id):
                return run
        await asyncio.sleep(0.2)
    raise AssertionError("nobody was asked")


async def answer(client: PrefectClient, run: FlowRun, *, go_ahead: bool = True) -> None:
    await client.resume_flow_run(run.id, run_input={"go_ahead": go_ahead, "note": "said ann"})


async def read_description(client: PrefectClient, flow_run: UUID) -> str:
    """The text above the form that the UI shows."""
    keys = await client.filter_flow_run_input(flow_run, "paused-", limit=20, exclude_keys=set())
    return "\n".join(entry.value for entry in keys)
