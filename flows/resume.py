"""Resumes a session without a monitor. Entry point `autoexp.flows.resume.resume`."""

from typing import Any

from prefect import State, flow

from autoexp.flows.engine.cancellation_hook import cancel_jobs
from autoexp.flows.engine.lifecycle import run_name, watch
from autoexp.storage.places import sessions_root


@flow(
    name="autoexp-resume",
    flow_run_name=run_name,
    validate_parameters=False,
    retries=0,
    on_cancellation=[cancel_jobs],
)
async def resume(session: str) -> State[Any]:
    """Resume a session where it stands; its jobs are not submitted twice.

    Args:
        session: The session's id, as `autoexp sessions list` shows it.
    """
    return await watch(sessions_root() / session)
