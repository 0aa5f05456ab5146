"""What the automations do with a flow run whose process dies."""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import State, flow, get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import SetStateStatus
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore
from prefect.server.events.schemas.automations import EventTrigger as ServerTrigger
from prefect.server.events.schemas.events import ReceivedEvent
from prefect.states import Cancelled, Completed, Crashed, Failed, Scheduled

from autoexp.flows.deployment import automations

pytestmark = pytest.mark.prefect

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


async def execute(run: FlowRun) -> None:
    """What a worker does: start the run's process, and report its death."""
    command = (sys.executable, "-m", "prefect", "flow-run", "execute", str(run.id))
    process = await asyncio.create_subprocess_exec(*command)
    await process.wait()


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + 300
    while not await condition():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        await asyncio.sleep(0.5)


# What Prefect and autoexp call the states of a session's run, and one that nobody knows yet.
STATES = (
    *("Scheduled", "Late", "Pending", "Running", "Retrying", "AwaitingRetry", "Resuming"),
    *("Paused", "Suspended", "Completed", "Failed", "Cancelling", "Cancelled"),
    *("Awaiting approval", "Catching up", "Zwischenstand"),
)


def happened(what: str, **about: str) -> ReceivedEvent:
    """An event of a run as the server has it; `about` names what it is related to, by role."""
    named = {"tag": "prefect.tag.autoexp", "deployment": "prefect.deployment.1", **about}
    related = [
        {"prefect.resource.role": role, "prefect.resource.id": name} for role, name in named.items()
    ]
    return ReceivedEvent(
        occurred=datetime.now(UTC),
        event=f"prefect.flow-run.{what}",
        resource={"prefect.resource.id": "prefect.flow-run.1"},
        related=related,
        id=uuid4(),
    )


def as_the_server_has_it(automation: AutomationCore) -> ServerTrigger:
    return ServerTrigger.model_validate(automation.trigger.model_dump())


@pytest.mark.parametrize("state", STATES)
def test_a_state_of_whatever_name_is_a_sign_of_life(state: str) -> None:
    silence, resumption, giving_up = map(as_the_server_has_it, automations.recovery(900.0))
    for trigger in (silence, resumption):
        assert trigger.covers(happened(state)) and trigger.expects(happened(state).event)
        assert not trigger.starts_after(happened(state).event)
    assert not giving_up.covers(happened(state))


def test_a_crash_is_no_sign_of_life_and_a_late_heartbeat_is_no_resumption() -> None:
    silence, resumption, _ = map(as_the_server_has_it, automations.recovery(900.0))
    beat, crash = happened("heartbeat"), happened("Crashed")
    assert silence.starts_after(beat.event) and silence.expects(beat.event)
    assert silence.expects(crash.event) and not silence.starts_after(crash.event)
    assert resumption.starts_after(crash.event)
    assert not resumption.expects(crash.event) and not resumption.expects(beat.event)


def test_runs_that_nobody_could_resume_are_left_alone() -> None:
    for automation in automations.recovery(900.0):
        trigger = as_the_server_has_it(automation)
        assert trigger.covers(happened("Crashed"))
        assert not trigger.covers(happened("Crashed", deployment="prefect.flow.1"))
        assert not trigger.covers(happened("Crashed", tag="prefect.tag.other"))


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
    async with get_client() as client:
        deployment = await client.create_deployment(
            await client.create_flow(dies), "dies", entrypoint=f"{file}:dies", path=str(tmp_path)
        )

        async def new_run(state: State[Any]) -> FlowRun:
            return await client.create_flow_run_from_deployment(
                deployment, tags=["autoexp"], state=state
            )

        run = await new_run(Scheduled())

        async def is_left_alone() -> bool:
            nonlocal deaths
            state = await state_of(client, run.id)
            if state.startswith("SCHEDULED"):
                await execute(run)
                deaths += 1
            return state.startswith("FAILED: its process died repeatedly")

        # A report that a busy server loses is made up for by the next death.
        await until(is_left_alone, "the end of its starts")
        assert deaths >= 2

        # As subflows are, and what runs in a terminal: nobody could resume them.
        other = await client.create_flow_run(dies, tags=["autoexp"], state=Crashed())
        later = await new_run(Crashed())

        async def is_resumed() -> bool:
            return (await state_of(client, later.id)).startswith("SCHEDULED: resumed after a crash")

        await until(is_resumed, "the start after a later crash")
        assert (await state_of(client, run.id)).startswith("FAILED: its process died repeatedly")
        assert (await state_of(client, other.id)).startswith("CRASHED")
        for automation in installed:
            for found in await client.read_automations_by_name(automation.name):
                await client.delete_automation(found.id)
