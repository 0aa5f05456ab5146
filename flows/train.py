"""The session flow: one flow run that watches a training and all its cooldowns.

Entry point `flows/train.py:train`. Prefect loads this file as a module named `train`, so it
defines nothing but flows.
"""

import asyncio
import signal
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import State, flow, get_client, get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed, Crashed, Failed

from autoexp.compose import compose
from autoexp.creation import create
from autoexp.provenance import provenance
from autoexp.schedulers.choose import scheduler_for
from autoexp.session import Session, sessions_root
from flows.context import in_foreground
from flows.engine import SessionRun, failed_jobs


def _run_name() -> str:
    """`session demo-1124-k3fq`; a session that is yet to be made is named when it is."""
    return f"session {flow_run.parameters.get('session') or 'new'}"


@flow(name="autoexp", flow_run_name=_run_name, validate_parameters=False)
async def train(
    config: str = "demo", overrides: list[str] | None = None, session: str | None = None
) -> State[Any]:
    """Train and branch cooldowns; with `session`, take an existing session up again."""
    root = sessions_root()
    path = root / session if session else _session_of_this_run(root)
    if path is None:
        composed = compose(config, overrides or [])
        path = create(composed, root, provenance=provenance(), flow_run_id=flow_run.id)
        async with get_client() as client:
            await client.update_flow_run(UUID(flow_run.id), name=f"session {path.name}")
    log = get_run_logger()
    with Session.hold(path) as (held, lease):
        if flow_run.id not in held.meta.flow_run_ids:
            held.meta.flow_run_ids.append(flow_run.id)
            held.save_meta()
        log.info("session %s in %s", held.id, path)
        run = SessionRun(held, lease, scheduler_for(held.experiment), log)
        if in_foreground():
            _stop_on_signals(run)
        await run.run()
        return _final_state(run)


def _session_of_this_run(root: Path) -> Path | None:
    """The session that this flow run made before it died, if Prefect runs it again."""
    for path in root.glob("*/session.json"):
        if flow_run.id in path.read_text():
            return path.parent
    return None


def _stop_on_signals(run: SessionRun) -> None:
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(signum, run.news.interrupt, signum.name)


def _final_state(run: SessionRun) -> State[Any]:
    if not run.session.is_over:
        return Crashed(message=f"stopped watching ({run.news.interrupted}); jobs keep running")
    failed = failed_jobs(run.session)
    if failed:
        return Failed(message="; ".join(failed))
    return Completed(message=f"all {len(run.session.jobs)} jobs finished")
