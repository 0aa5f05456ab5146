"""A plan above its budget: asked for in Prefect, and not forgotten when the process dies."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest
from prefect import get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.states import AwaitingRetry, Cancelling, Crashed, Pending

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


@pytest.mark.parametrize("decision", ["submit", "cancel"])
async def test_a_flow_run_pauses_for_approval_and_says_what_it_waits_for(
    make_session: Make, tmp_path: Path, decision: str, caplog: pytest.LogCaptureFixture
) -> None:
    del make_session
    root = tmp_path / "sessions"
    running = asyncio.create_task(train(config="demo", overrides=COSTLY, return_state=True))  # type: ignore[call-overload]
    async with get_client() as client:
        run = await paused(client)
        assert run.state is not None and run.state.name == "Awaiting approval"
        assert not list(root.glob("*"))
        asked = "1 jobs: 1 train; 50.00 GPU hours: budget.confirm_above is 49"
        assert "demo  train  0 → 50" in await read_form(client, run.id)
        for shown in (
            str(run.state and run.state.message),
            await read_form(client, run.id),
            await read_artifact(client, run.id),
            caplog.text,
        ):
            assert asked in shown
        for shown in (str(run.state and run.state.message), await read_artifact(client, run.id)):
            assert f"/flow-run/{run.id}" in shown
        # Whoever only presses the button has not answered.
        refused = await client.resume_flow_run(run.id, run_input={"note": "said ann"})
        assert refused.status is SetStateStatus.REJECT and "decision" in str(refused.details)
        await answer(client, run, decision)
        state = await running
        assert f"answered: {decision} said ann" in await read_artifact(client, run.id)

    sessions = [path.parent for path in root.glob("[!.]*/session.json")]
    if decision == "submit":
        assert state.is_completed(), state.message
        assert {job.verdict for job in Session.load(sessions[0]).jobs.values()} == {
            Verdict.FINISHED
        }
    else:
        assert state.is_cancelled()
        assert "the plan was rejected: said ann" in str(state.message)
        assert sessions == []


@pytest.mark.parametrize("answered", ["afterwards", "while nobody waits"])
async def test_a_flow_that_is_killed_while_it_waits_asks_again_unless_it_was_answered(
    make_session: Make, tmp_path: Path, answered: str
) -> None:
    del make_session
    parameters = {"config": "demo", "overrides": COSTLY}
    async with get_client() as client:
        run = await client.create_flow_run(
            train, name="ann's night run", parameters=parameters, state=Pending()
        )
        process = execute(run.id)
        asked = await paused(client, run.id)
        process.kill()
        process.wait()
        if answered == "while nobody waits":
            await answer(client, asked)
        # As a worker and its automation do.
        for state in (Crashed(), AwaitingRetry(), Pending()):
            await client.set_flow_run_state(run.id, state, force=True)
        process = execute(run.id)
        if answered == "afterwards":
            await answer(client, await paused(client, run.id))
        assert await asyncio.to_thread(process.wait, 60) == 0
        ended = await client.read_flow_run(run.id)

    assert ended.state is not None
    assert ended.state.is_completed(), ended.state.message
    assert ended.name == "ann's night run"
    assert len(list((tmp_path / "sessions").glob("[!.]*/session.json"))) == 1


async def test_a_flow_run_that_is_marked_as_crashed_while_it_waits_goes_on_waiting(
    make_session: Make, tmp_path: Path
) -> None:
    del make_session
    running = asyncio.create_task(train(config="demo", overrides=COSTLY, return_state=True))  # type: ignore[call-overload]
    async with get_client() as client:
        run = await paused(client)
        await client.set_flow_run_state(run.id, Crashed(), force=True)
        assert (await paused(client, run.id)).name == "train demo"
        await client.set_flow_run_state(run.id, Cancelling(), force=True)
    state = await running
    assert state.is_cancelled() and "while it waited for approval" in str(state.message)
    assert not list((tmp_path / "sessions").glob("*"))


def execute(flow_run: UUID) -> "subprocess.Popen[bytes]":
    """What a worker starts for a flow run."""
    environment = {**os.environ, "PREFECT__FLOW_RUN_ID": str(flow_run)}
    command = [sys.executable, "-m", "prefect.flow_engine", ENTRYPOINT]
    return subprocess.Popen(command, env=environment)


async def paused(client: PrefectClient, wanted: UUID | None = None) -> FlowRun:
    """The run that waits for an answer, once it does."""
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED]))
    only = FlowRunFilterId(any_=[wanted]) if wanted else None
    for _ in range(1500):
        for run in await client.read_flow_runs(flow_run_filter=FlowRunFilter(state=state, id=only)):
            if await read_artifact(client, run.id):
                return run
        await asyncio.sleep(0.2)
    raise AssertionError("nobody was asked")


async def answer(client: PrefectClient, run: FlowRun, decision: str = "submit") -> None:
    await client.resume_flow_run(run.id, run_input={"decision": decision, "note": "said ann"})


async def read_form(client: PrefectClient, flow_run: UUID) -> str:
    """The form that the UI shows, with the text above it."""
    keys = await client.filter_flow_run_input(flow_run, "paused-", limit=20, exclude_keys=set())
    return "\n".join(entry.value for entry in keys)


async def read_artifact(client: PrefectClient, flow_run: UUID) -> str:
    found = await client.read_artifacts(
        artifact_filter=ArtifactFilter(
            flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run]),
            key=ArtifactFilterKey(any_=["approval"]),
        )
    )
    return "\n".join(str(artifact.data) for artifact in found)
