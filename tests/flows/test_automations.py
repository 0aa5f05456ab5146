"""What the automations do with a flow run whose process dies."""

import asyncio
import time
from uuid import UUID

import pytest
from prefect import flow, get_client
from prefect.client.orchestration import PrefectClient
from prefect.states import Crashed, Scheduled

from flows import automations

pytestmark = pytest.mark.prefect


@flow(name="dies")
def dies() -> None:
    """Stands for a session whose process dies at every start."""


async def state_of(client: PrefectClient, flow_run_id: UUID) -> str:
    state = (await client.read_flow_run(flow_run_id)).state
    assert state is not None
    return f"{state.type.value}: {state.message}"


async def test_a_session_that_dies_at_every_start_is_left_alone_after_ten_reports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The shortest that Prefect takes.
    monkeypatch.setattr(automations, "_PAUSE_S", 10.0)
    installed = automations.recovery(3600.0)
    await automations.install(installed)
    async with get_client() as client:
        run = await client.create_flow_run(dies, tags=["autoexp"])
        for _ in range(9):
            await client.set_flow_run_state(run.id, Crashed(), force=True)
            await client.set_flow_run_state(run.id, Scheduled(), force=True)
        await asyncio.sleep(3)
        assert (await state_of(client, run.id)).startswith("SCHEDULED")

        await client.set_flow_run_state(run.id, Crashed(), force=True)

        deadline = time.monotonic() + 30
        while not (await state_of(client, run.id)).startswith("FAILED: its process died again"):
            assert time.monotonic() < deadline, await state_of(client, run.id)
            await asyncio.sleep(0.2)
        # The pause of the one that takes sessions up, and its server's tick.
        await asyncio.sleep(20)
        assert (await state_of(client, run.id)).startswith("FAILED: its process died again")
        for automation in installed:
            for found in await client.read_automations_by_name(automation.name):
                await client.delete_automation(found.id)
