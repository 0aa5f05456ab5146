"""Asking in Prefect's UI whether a plan above its budget may go ahead, before it is submitted."""

from prefect import flow, get_run_logger
from prefect.flow_runs import apause_flow_run
from prefect.input import RunInput
from pydantic import Field

from autoexp.compose import Composed
from autoexp.errors import NotAgreed
from autoexp.plan import Plan
from flows.planning import above_budget, as_text

_A_WEEK_S = 7 * 24 * 3600


class Approval(RunInput):
    """What somebody answers."""

    go_ahead: bool = Field(False, description="submit the jobs of this plan")
    note: str = Field("", description="why, for the log")


async def approved(composed: Composed, found: Plan) -> None:
    """Wait until somebody agrees to a plan above `budget.confirm_above`; others go ahead at once.

    Raises NotAgreed when the answer is no.
    """
    question = above_budget(composed, found)
    if question is not None:
        await ask(question, f"{question}\n\n```\n{as_text(found, composed)}\n```")


@flow(name="approve", flow_run_name="approve the plan", validate_parameters=False)
async def ask(question: str, text: str) -> None:
    """Pause, alone, until somebody answers in the UI."""
    answer = await apause_flow_run(
        wait_for_input=Approval.with_initial_data(description=text, go_ahead=False),
        timeout=_A_WEEK_S,
        poll_interval=2,
    )
    note = f": {answer.note}" if answer.note else ""
    if not answer.go_ahead:
        raise NotAgreed(f"{question}; somebody said no{note}")
    get_run_logger().info("somebody agreed%s", note)
