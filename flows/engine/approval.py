"""Asks in Prefect's UI for approval of a plan above its budget, before anything is submitted."""

from uuid import UUID

from prefect import State, flow, get_client, get_run_logger, runtime
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterName,
    FlowRunFilterParentFlowRunId,
)
from prefect.flow_runs import apause_flow_run
from prefect.input import RunInput, keyset_from_base_key
from prefect.input.actions import aread_flow_run_input
from prefect.states import Cancelled, Completed
from pydantic import Field

from autoexp import sinks
from autoexp.config.compose import Composed
from autoexp.errors import NotAgreed
from autoexp.planning.plan import Plan, above_budget
from autoexp.reports.plan_tree import as_text

_NAME = "approve the plan"
_PAUSE = "approval"
_A_WEEK_S = 7 * 24 * 3600


class Approval(RunInput):
    """The answer to the question."""

    go_ahead: bool = Field(False, description="submit the jobs of this plan")
    note: str = Field("", description="why, for the log")


async def approved(composed: Composed, found: Plan) -> None:
    """Wait for approval of a plan above `budget.confirm_above`; return at once for others.

    Raises NotAgreed when the answer is no.
    """
    question = above_budget(composed.experiment.budget, found)
    if question is None:
        return
    answer = await _answered_before()
    if answer is None:
        answer = await _ask(f"{question}\n\n```\n{as_text(found, composed)}\n```")
    note = f": {answer.note}" if answer.note else ""
    if not answer.go_ahead:
        raise NotAgreed(f"{question}; the plan was rejected{note}")
    get_run_logger().info("approved%s", note)


async def _ask(text: str) -> Approval:
    async def ask() -> Approval:
        """Pause this subflow until somebody answers in the UI."""
        with sinks.plain_errors():
            return await apause_flow_run(
                wait_for_input=Approval.with_initial_data(description=text, go_ahead=False),
                timeout=_A_WEEK_S,
                poll_interval=2,
                key=_PAUSE,
            )

    # A flow run that is run again would continue its earlier subflow, which cannot pause twice.
    ask.__qualname__ = f"ask.{runtime.flow_run.run_count}"
    return await flow(name="approve", flow_run_name=_NAME)(ask)()


async def _answered_before() -> Approval | None:
    """The answer given after the process that had asked was killed, if there is one.

    Closes the questions of that process: nobody waits for them.
    """
    parent = FlowRunFilterParentFlowRunId(any_=[UUID(str(runtime.flow_run.id))])
    asked = FlowRunFilter(parent_flow_run_id=parent, name=FlowRunFilterName(any_=[_NAME]))
    answer = None
    async with get_client() as client:
        for run in await client.read_flow_runs(flow_run_filter=asked):
            if run.state is None or run.state.is_final():
                continue
            key = keyset_from_base_key(f"paused-{_PAUSE}")["response"]
            response = await aread_flow_run_input(key, flow_run_id=run.id)
            ended: State[None] = Cancelled(message="asked again by a new process")
            if response is not None:
                answer, ended = Approval(**response), Completed(message="answered")
            await client.set_flow_run_state(run.id, ended, force=True)
    return answer
