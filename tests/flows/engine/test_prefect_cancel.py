"""Cancelling in Prefect's UI, which sets the flow run's state to Cancelling."""

import asyncio
import threading
import time
from contextvars import copy_context
from uuid import UUID

import pytest
from prefect import Task, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelling, Pending

from autoexp.flows.engine.cancellation_hook import cancel_jobs
from autoexp.flows.train import train
from autoexp.session import find
from autoexp.session.session import Session
from autoexp.storage import lease
from tests.flows.runs import subflows
from tests.flows.sessions import Make, hold_back
from tests.patience import PATIENCE_S, until

pytestmark = pytest.mark.prefect


async def cancel(flow_run_id: str | UUID) -> None:
    async with get_client() as client:
        await client.set_flow_run_state(UUID(str(flow_run_id)), Cancelling(), force=True)


async def state_of(flow_run_id: str) -> FlowRun:
    async with get_client() as client:
        return await client.read_flow_run(UUID(flow_run_id))


async def test_cancelling_the_sessions_flow_run_cancels_its_jobs_though_nobody_tells(
    make_session: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("autoexp.flows.engine.cancellation.get_events_subscriber")
    path = make_session("backend.args.sleep_per_iteration_ms=1000")
    run = asyncio.create_task(train(session=path.name, return_state=True))  # type: ignore[var-annotated, arg-type]
    deadline = time.monotonic() + PATIENCE_S
    while Session.load(path).jobs["demo"].state != "RUNNING":
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)

    await cancel(Session.load(path).meta.flow_run_ids[-1])
    state = await asyncio.wait_for(run, PATIENCE_S)

    assert state.is_cancelled()
    session = Session.load(path)
    assert session.jobs["demo"].state == "CANCELLED"
    assert {job.reason for job in session.jobs.values()} == {"cancelled: cancelled in Prefect"}
    flow_run = await state_of(session.meta.flow_run_ids[-1])
    assert flow_run.state is not None
    assert flow_run.state.is_cancelled()


async def test_cancelling_one_cooldowns_subflow_is_told_and_cancels_that_job_alone(
    make_session: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoexp.flows.engine.cancellation._POLL_INTERVAL_S", 1000)
    path = make_session()
    hold_back(path, "demo-cd100")  # it still runs when the training has ended
    run = asyncio.create_task(train(session=path.name, return_state=True))  # type: ignore[var-annotated, arg-type]
    deadline = time.monotonic() + PATIENCE_S
    while not (drawn := [r for r in await subflows_of(path) if r.name == "demo @100"]):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.5)

    await cancel(drawn[0].id)
    state = await asyncio.wait_for(run, PATIENCE_S)

    verdicts = {name: job.verdict for name, job in Session.load(path).jobs.items()}
    assert verdicts == {"demo": "finished", "demo-cd100": "failed", "demo-cd200": "finished"}
    assert Session.load(path).jobs["demo-cd100"].was_cancelled
    assert state.is_cancelled()


async def subflows_of(path: object) -> list[FlowRun]:
    session = Session.load(path)  # type: ignore[arg-type]
    return await subflows(session) if session.meta.flow_run_ids else []


def test_a_subflow_that_the_server_writes_after_its_process_was_killed_is_closed_too(
    make_session: Make,
) -> None:
    path = make_session("cooldowns=[]")
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(train, state=Cancelling())
        with Session.hold(path) as (session, _):
            find.take_up(path, [str(run.id)])
            session.meta.flow_run_ids.append(str(run.id))
            session.save_meta()
            session.begin_attempt(session.jobs["demo"])
        # What a worker runs once it has killed the flow's process; with this test's settings.
        hook = threading.Thread(
            target=copy_context().run, args=(cancel_jobs, train, run, run.state)
        )
        hook.start()
        until(lambda: Session.load(path).is_over and lease.look(path) is None, "the end of the job")
        above = client.create_task_run(Task(lambda: None), run.id, dynamic_key="late")
        late = client.create_flow_run(train, parent_task_run_id=above.id, state=Pending())
        hook.join()
        state = client.read_flow_run(late.id).state
    assert state is not None
    assert state.is_cancelled()
