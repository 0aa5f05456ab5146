"""The session flow: one flow run that watches a training and all its cooldowns.

Entry point `flows/train.py:train`. Prefect loads this file as a module named `train`, so it
defines nothing but flows.
"""

import asyncio
import signal
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import State, flow, get_client, get_run_logger, runtime
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelled, Completed, Crashed, Failed

from autoexp.cancelling import cancel_directly
from autoexp.compose import compose
from autoexp.creation import create
from autoexp.jobs import Verdict
from autoexp.provenance import provenance
from autoexp.schedulers.choose import scheduler_for
from autoexp.session import Session, sessions_root
from flows.approving import approved
from flows.context import in_foreground
from flows.engine import SessionRun, failed_jobs


def _run_name() -> str:
    """`session demo-1124-k3fq`; a session that is yet to be made is named when it is."""
    return f"session {runtime.flow_run.parameters.get('session') or 'new'}"


def cancel_jobs(flow: Any, flow_run: FlowRun, state: State[Any]) -> None:
    """Cancel the session's jobs; a worker runs this in a process of its own.

    Under a worker a cancelled flow is killed before it can do so by itself. A crash or a worker's
    shutdown does not come here: they cancel nothing.
    """
    path = _session_of(str(flow_run.id), sessions_root())
    if path is not None:
        for key, answer in cancel_directly(path, (), "cancelled in Prefect").answers.items():
            get_run_logger().info("cancel %s: %s", key, answer)


@flow(
    name="autoexp",
    flow_run_name=_run_name,
    validate_parameters=False,
    on_cancellation=[cancel_jobs],
)
async def train(
    config: str = "demo", overrides: list[str] | None = None, session: str | None = None
) -> State[Any]:
    """Train and branch cooldowns; with `session`, take an existing session up again."""
    root = sessions_root()
    path = root / session if session else _session_of(runtime.flow_run.id, root)
    if path is None:
        composed = compose(config, overrides or [])
        await approved(composed)
        path = create(composed, root, provenance=provenance(), flow_run_id=runtime.flow_run.id)
        async with get_client() as client:
            await client.update_flow_run(UUID(runtime.flow_run.id), name=f"session {path.name}")
    log = get_run_logger()
    with Session.hold(path) as (held, lease):
        if runtime.flow_run.id not in held.meta.flow_run_ids:
            held.meta.flow_run_ids.append(runtime.flow_run.id)
            held.save_meta()
        log.info("session %s in %s", held.id, path)
        run = SessionRun(held, lease, scheduler_for(held.experiment), log)
        if in_foreground():
            _stop_on_signals(run)
        await run.run()
        return _final_state(run)


def _session_of(flow_run_id: str, root: Path) -> Path | None:
    """The session that a flow run has made or taken up before, if any."""
    for path in root.glob("*/session.json"):
        if flow_run_id in path.read_text():
            return path.parent
    return None


def _stop_on_signals(run: SessionRun) -> None:
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(signum, run.news.interrupt, signum.name)


def _final_state(run: SessionRun) -> State[Any]:
    if not run.session.is_over:
        return Crashed(message=f"stopped watching ({run.news.interrupted}); jobs keep running")
    jobs = run.session.jobs.values()
    if any(job.was_cancelled for job in jobs) and all(
        job.was_cancelled or job.verdict is Verdict.FINISHED for job in jobs
    ):
        return Cancelled(message="; ".join(failed_jobs(run.session)))
    failed = failed_jobs(run.session)
    if failed:
        return Failed(message="; ".join(failed))
    return Completed(message=f"all {len(run.session.jobs)} jobs finished")
