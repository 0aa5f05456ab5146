"""What every session flow does: make or find its session, hold it, watch it, say how it ended."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import Flow, State, get_client, get_run_logger, runtime
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.logging.loggers import flow_run_logger
from prefect.states import Cancelled, Completed, Crashed, Failed

from autoexp import starts
from autoexp.cancelling import cancel_directly
from autoexp.compose import Composed
from autoexp.errors import SessionGivenUp
from autoexp.jobs import Verdict
from autoexp.lease import Lease
from autoexp.plan import Plan
from autoexp.rules import engines
from autoexp.schedulers.choose import scheduler_for
from autoexp.session import Session, sessions_root
from flows import form
from flows.approving import approved
from flows.composing import compose
from flows.context import foreground
from flows.engine import SessionRun, failed_jobs
from flows.finding import directories
from flows.planning import plan_of

_CHECKOUT = Path(__file__).resolve().parent.parent
_LATE_S = 10.0


def run_name() -> str:
    """`session demo-1124-k3fq`; a session that is yet to be made is named when it is."""
    made = session_of(str(runtime.flow_run.id), sessions_root())
    named = runtime.flow_run.parameters.get("session")
    return f"session {made.name if made else named or 'new'}"


def cancel_jobs(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Cancel the session's jobs; a worker runs this in a process of its own.

    Under a worker a cancelled flow is killed before it can do so by itself. A crash or a worker's
    shutdown does not come here: they cancel nothing.
    """
    # Hooks run in a directory of their own, and deployments in the checkout.
    root = sessions_root() if "AUTOEXP_SESSIONS" in os.environ else _CHECKOUT / "sessions"
    path = session_of(str(flow_run.id), root)
    if path is None:
        return
    log = flow_run_logger(flow_run, flow)
    outcome = cancel_directly(path, (), "cancelled in Prefect")
    for key, answer in outcome.answers.items():
        log.info("cancel %s: %s", key, answer)
    if outcome.problem is not None:
        log.error("not ended yet: %s; `autoexp cancel %s` asks again", outcome.problem, path.name)
    begun = sum(bool(job.attempts) for job in Session.load(path).jobs.values())
    _close_subflows(flow_run, begun)


def _close_subflows(flow_run: FlowRun, begun: int) -> None:
    """The jobs' subflows died with the flow's process, and cannot tell their end themselves.

    One for each job that was `begun`; the last that the process asked for, as it was killed, the
    server may still be writing.
    """
    mine = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[flow_run.id]))
    ended: State[Any] = Cancelled(message="cancelled with its session")
    deadline = time.monotonic() + _LATE_S
    with get_client(sync_client=True) as client:
        while True:
            runs = client.read_flow_runs(flow_run_filter=mine)
            for run in runs:
                if run.state is None or not run.state.is_final():
                    client.set_flow_run_state(run.id, ended, force=True)
            if len(runs) >= begun or time.monotonic() > deadline:
                return
            time.sleep(0.5)


def ask_for(config: str, overrides: Sequence[str], experiment: Any) -> Composed:
    """The experiment that the flow's parameters mean: a filled-in form, or a configuration."""
    return compose(config, list(overrides)) if experiment is None else form.composed(experiment)


def session_of(flow_run_id: str, root: Path) -> Path | None:
    """The session that a flow run has made or taken up before, if any."""
    return next(
        (p for p in directories(root) if flow_run_id in (p / "session.json").read_text()), None
    )


async def watch_new(
    ask: Callable[[], Composed],
    make: Callable[[Composed, Path, str], Path],
    plan: Callable[[Composed], Plan] = plan_of,
) -> State[Any]:
    """Watch the session that `make(composed, root, flow run id)` creates of what `ask` composes.

    A `plan(composed)` above its budget is put to somebody before. A flow run that is run again goes
    on with the session that it made the first time.
    """
    root, flow_run_id = sessions_root(), str(runtime.flow_run.id)
    path = session_of(flow_run_id, root)
    if path is None:
        # Composing may ask Prefect for a block, which is done in a thread without a loop.
        composed = await asyncio.to_thread(ask)
        await approved(composed, await asyncio.to_thread(plan, composed))
        path = await asyncio.to_thread(make, composed, root, flow_run_id)
        async with get_client() as client:
            await client.update_flow_run(UUID(flow_run_id), name=f"session {path.name}")
    return await watch(path)


async def watch(path: Path) -> State[Any]:
    """Hold a session and watch it until it is over, or until this process is told to stop.

    A person at a terminal always goes on; a flow run that died here too often fails.
    """
    log = get_run_logger()
    by = None if foreground() else str(runtime.flow_run.id)
    try:
        with Session.hold(path, starts.counted(path, by)) as (held, lease):
            settled = asyncio.get_running_loop().call_later(starts.SETTLED_S, starts.forget, path)
            try:
                return await _watch(held, lease, log)
            finally:
                settled.cancel()
    except SessionGivenUp as error:
        log.error("%s", error)
        return Failed(message=str(error))


async def _watch(held: Session, lease: Lease, log: "logging.Logger | Any") -> State[Any]:
    if runtime.flow_run.id not in held.meta.flow_run_ids:
        held.meta.flow_run_ids.append(runtime.flow_run.id)
        held.save_meta()
    log.info("session %s in %s", held.id, held.path)
    if held.experiment.monitoring.log_events and (advice := engines.advice()):
        log.info(advice)
    run = SessionRun(held, lease, scheduler_for(held.experiment), log)
    if terminal := foreground():
        terminal.listen(run.news)
    await run.run()
    return _final_state(run)


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
