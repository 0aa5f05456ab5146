"""Asks a running session for a cooldown from a checkpoint that is saved for it now."""

import asyncio

from prefect import State, flow, get_run_logger
from prefect.states import Completed

from autoexp import sinks
from autoexp.operations.on_request.branch import enqueue_save
from autoexp.rules.actions import Decay, LaunchedCooldown


@flow(name="autoexp-branch", validate_parameters=False, retries=0)
async def branch(
    session: str, decay: Decay, job: str | None = None, name: str = "now", restart: bool = False
) -> State[None]:
    """Have a training save now, and branch a cooldown from that checkpoint in the same session.

    Args:
        session: The session's id; its monitor has to run, as it carries the request out.
        decay: Length (`iterations` or `fraction`), shape and final learning rate.
        job: Which training; the first one by default.
        name: Part of the cooldown's name.
        restart: For trainers that cannot save and go on: save and end, then a new attempt.
    """
    asked = LaunchedCooldown(decay=Decay.model_validate(decay), name=name)
    with sinks.plain_errors():
        said = await asyncio.to_thread(
            enqueue_save, session, job, asked, restart=restart, command="branch (Prefect)"
        )
    get_run_logger().info("%s", sinks.line(said))
    return Completed(message=sinks.terminal(said))
