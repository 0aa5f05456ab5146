"""What the automations do with a flow run whose process dies."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import UUID

import pytest
from prefect import State, flow, get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.responses import SetStateStatus
from prefect.events.actions import ChangeFlowRunState
from prefect.runner import Runner
from prefect.states import Cancelled, Completed, Crashed, Failed, Scheduled

from autoexp.flows.deployment import automations

pytestmark = [pytest.mark.prefect, pytest.mark.filterwarnings("ignore:.*execute_flow_run")]

DIES = """
import os, signal
from prefect import flow

@flow
def dies():
    os.kill(os.getpid(), signal.SIGKILL)
"""


@flow
def dies() -> None:
    """Stands for what is in the file that a worker loads."""


async def state_of(client: PrefectClient, flow_run_id: UUID) -> str:
    state = (await client.read_flow_run(flow_run_id)).state
    assert state is not None
    return f"{state.type.value}: {state.message}"


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + 300
    while not await condition():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        await asyncio.sleep(0.5)


@pytest.mark.parametrize("end", [Completed, Failed, Cancelled])
async def test_silence_leaves_alone_what_has_ended(end: Callable[..., State[object]]) -> None:
    """A heartbeat may come after the end of its run; six minutes later there is silence."""
    (silence, *_) = automations.recovery(360.0)
    (action,) = silence.actions
    assert isinstance(action, ChangeFlowRunState)
    async with get_client() as client:
        run = await client.create_flow_run(dies, tags=["autoexp"])
        await client.set_flow_run_state(run.id, end(message="its own end"), force=True)
        crashed = State[object](type=action.state, message=action.message)
        answer = await client.set_flow_run_state(run.id, crashed, force=action.force)
        assert answer.status is SetStateStatus.ABORT
        assert (await state_of(client, run.id)).endswith(": its own end")


async def test_what_dies_at_every_start_before_it_has_a_session_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The shortest that Prefect takes, and fewer deaths: there is a pause before each start.
    monkeypatch.setattr(automations, "_PAUSE_S", 10.0)
    monkeypatch.setattr(automations, "_CRASHES", 3)
    file = tmp_path / "dying.py"
    file.write_text(DIES)
    installed = automations.recovery(3600.0)
    await automations.install(installed)
    deaths = 0
    async with get_client() as client, Runner() as worker:
        run = await client.create_flow_run(dies, tags=["autoexp"], state=Scheduled())

        async def is_left_alone() -> bool:
            nonlocal deaths
            state = await state_of(client, run.id)
            if state.startswith("SCHEDULED"):
                # What a worker does: it starts the process, and reports its death.
                await worker.execute_flow_run(run.id, entrypoint=f"{file}:dies")
                deaths += 1
            return state.startswith("FAILED: its process died repeatedly")

        # A report that a busy server loses is made up for by the next death.
        await until(is_left_alone, "the end of its starts")
        assert deaths >= 2

        later = await client.create_flow_run(dies, tags=["autoexp"], state=Crashed())

        async def is_resumed() -> bool:
            return (await state_of(client, later.id)).startswith("SCHEDULED: resumed after a crash")

        await until(is_resumed, "the start after a later crash")
        assert (await state_of(client, run.id)).startswith("FAILED: its process died repeatedly")
        for automation in installed:
            for found in await client.read_automations_by_name(automation.name):
                await client.delete_automation(found.id)
