"""Asks in Prefect for approval of a plan above its budget, before anything is submitted.

The flow run itself is paused: its state, its log and an artifact say what it waits for.
"""

import asyncio
from datetime import timedelta
from typing import Any, Literal
from uuid import UUID

from prefect import State, get_client, get_run_logger, runtime
from prefect.artifacts import acreate_markdown_artifact
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.responses import SetStateStatus
from prefect.input import Keyset, RunInput, keyset_from_base_key
from prefect.input.actions import aread_flow_run_input
from prefect.states import Paused
from prefect.utilities.urls import url_for
from pydantic import Field

from autoexp import sinks
from autoexp.config.compose import Composed
from autoexp.errors import NotAgreed
from autoexp.flows.concurrency.outbox import is_prefect_error
from autoexp.model import now
from autoexp.planning.plan import Plan, above_budget
from autoexp.reports.plan_tree import as_text

_PAUSE = "approval"
_STATE = "Awaiting approval"
_A_WEEK_S = 7 * 24 * 3600
_POLL_S = 2.0


class Approval(RunInput):
    """The answer to the question."""

    # Without a default: whoever only presses the button has not answered.
    decision: Literal["submit", "cancel"] = Field(
        description="submit the jobs of this plan, or cancel the run"
    )
    note: str = Field("", description="why, for the log")


async def approved(composed: Composed, found: Plan) -> None:
    """Wait for approval of a plan above `budget.confirm_above`; return at once for others.

    Raises NotAgreed when the answer is no, or there is none within a week.
    """
    question = above_budget(composed.experiment.budget, found)
    if question is None:
        return
    answer = await _answered_before()
    if answer is None:
        answer = await _ask(question, f"```\n{as_text(found, composed)}\n```")
    note = f": {answer.note}" if answer.note else ""
    if answer.decision == "cancel":
        raise NotAgreed(f"{question}; the plan was rejected{note}")
    get_run_logger().info("approved%s", note)


async def _ask(question: str, plan: str) -> Approval:
    """Pause this flow run until somebody answers."""
    flow_run_id = UUID(str(runtime.flow_run.id))
    where = f"`Resume` on this run's page answers: {url_for('flow-run', flow_run_id)}"
    waits = sinks.line(f"waits for approval of its plan ({question})")
    paused: State[Any] = Paused(
        name=_STATE,
        timeout_seconds=_A_WEEK_S,
        pause_key=_pause_key(runtime.flow_run.run_count),
        message=f"{waits}. {where}",
    )
    keyset = _keyset(runtime.flow_run.run_count)
    paused.state_details.run_input_keyset = {str(key): name for key, name in keyset.items()}
    form = Approval.with_initial_data(description=f"{question}\n\n{plan}")
    async with get_client() as client:
        answered = await client.set_flow_run_state(flow_run_id, paused)
        if answered.status is not SetStateStatus.ACCEPT:
            raise NotAgreed(f"{question}; the run cannot wait for approval ({answered.details})")
        # Prefect 3.9 drops what an earlier attempt has left there as the run is paused.
        await form.asave(keyset, flow_run_id)
        get_run_logger().warning("%s. %s", waits, where)
        await _show(f"This run {waits}. {where}", plan)
        try:
            answer = await _answer(client, flow_run_id, paused, keyset, form, question)
        except NotAgreed as error:
            await _show(str(error), plan)
            raise
        await _show(f"answered: {answer.decision} {answer.note}", plan)
    return answer


async def _show(said: str, plan: str) -> None:
    """Have the artifact say what is waited for, or how that ended."""
    try:
        text = f"{sinks.line(said)}\n\n{plan}"
        await acreate_markdown_artifact(text, key="approval", description="approval")
    except Exception as error:
        if not is_prefect_error(error):
            raise
        get_run_logger().warning("the artifact `approval` could not be sent: %s", error)


async def _answer(
    client: PrefectClient,
    flow_run_id: UUID,
    paused: State[Any],
    keyset: Keyset,
    form: type[Approval],
    question: str,
) -> Approval:
    """Wait until the run is resumed; raises NotAgreed when it is cancelled, or after a week."""
    ends_at, is_away = now() + timedelta(seconds=_A_WEEK_S), False
    while now() < ends_at:
        await asyncio.sleep(_POLL_S)
        try:
            state = (await client.read_flow_run(flow_run_id)).state
            is_away = False
            if state is None or state.is_paused():
                continue
            if state.is_running():
                return await form.aload(keyset, flow_run_id)
            if not state.is_crashed():
                raise NotAgreed(f"{question}; {state.name} while it waited for approval")
            # A server that was away, and got no heartbeats.
            await client.set_flow_run_state(flow_run_id, paused, force=True)
        except Exception as error:
            if not is_prefect_error(error):
                raise
            if not is_away:
                get_run_logger().warning("Prefect does not answer (%s); asking again", error)
            is_away = True
    raise NotAgreed(f"{question}; nobody approved the plan within a week")


async def _answered_before() -> Approval | None:
    """The answer given after the process that had asked was killed, if there is one."""
    flow_run_id = UUID(str(runtime.flow_run.id))
    for run_count in range(1, runtime.flow_run.run_count):
        key = _keyset(run_count)["response"]
        if response := await aread_flow_run_input(key, flow_run_id=flow_run_id):
            return Approval(**response)
    return None


def _keyset(run_count: int) -> Keyset:
    """Where a question and its answer are kept, whatever the state is called."""
    return keyset_from_base_key(f"paused-{_pause_key(run_count)}")


def _pause_key(run_count: int) -> str:
    # A flow run that is run again cannot pause twice by one key.
    return f"{_PAUSE}-{run_count}"
