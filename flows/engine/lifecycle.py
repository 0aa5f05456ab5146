"""Life cycle of a session flow: create or find the session, hold the lease, watch, finish."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import State, get_client, get_run_logger, runtime
from prefect.states import Cancelled, Completed, Crashed, Failed

from autoexp import sinks
from autoexp.config.compose import Composed
from autoexp.errors import NotAgreed, SessionGivenUp
from autoexp.flows.concurrency.foreground import foreground
from autoexp.flows.concurrency.gpu_pool import refuse_misfit
from autoexp.flows.engine.approval import approved
from autoexp.flows.engine.compose import compose
from autoexp.flows.engine.session_run import SessionRun, failed_jobs
from autoexp.flows.publishing import form, run_names
from autoexp.flows.publishing.posted_events import post_events
from autoexp.logs import engines
from autoexp.monitor import monitor_starts
from autoexp.operations import adopt
from autoexp.planning.plan import Plan
from autoexp.schedulers.registry import scheduler_for
from autoexp.session import find
from autoexp.session.create import create, id_for, plan_of
from autoexp.session.find import session_of
from autoexp.session.measured_speed import with_measured_speed
from autoexp.session.provenance import provenance
from autoexp.session.session import Session
from autoexp.states import Verdict
from autoexp.storage import permissions
from autoexp.storage.lease import Lease
from autoexp.storage.places import sessions_root

_SCHEDULERS = "autoexp.schedulers"


# What a run logs is shown on terminals and in Prefect; the filter sits before any handler.
for _log in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_log).addFilter(sinks.LINES)
# Prefect's engine emits its first events before a flow's first line.
post_events()


def run_name() -> str:
    """`train mylab`, then `session mylab-1124-k3fq`; a name that a person gave stays."""
    made = None
    with suppress(OSError):  # whoever looks for the session itself says what is wrong
        made = session_of(str(runtime.flow_run.id), sessions_root())
    return _name(None if made is None else made.name)


def _name(session: str | None) -> str:
    run = runtime.flow_run
    return run_names.name_of(run.name, run.flow_name, run.parameters, session)


def compose_request(
    config: str, site: str | None, overrides: Sequence[str], experiment: Any
) -> Composed:
    """Compose the experiment of a flow's parameters: a filled-in form, or a configuration."""
    if experiment is None:
        where = [f"slurm={site}"] if site else []
        return with_measured_speed(compose(config, [*where, *overrides]))
    return with_measured_speed(form.composed(experiment))


async def create_and_watch(
    compose: Callable[[], Composed],
    id_of: Callable[[Composed], str] = id_for,
    plan: Callable[[Composed, str], Plan] = plan_of,
) -> State[Any]:
    """Create a session of what `compose()` returns, with the id `id_of(composed)`, and watch it.

    The `plan(composed, id)` is made once: above its budget it needs approval, and the plan that was
    approved is the one that is submitted. A flow run that is run again finds the session that it
    made the first time.
    """
    with sinks.plain_errors():
        try:
            path = await _find_or_create(compose, id_of, plan)
        except NotAgreed as no:
            return Cancelled(message=sinks.terminal(str(no)))
    return await watch(path)


async def _find_or_create(
    compose: Callable[[], Composed],
    id_of: Callable[[Composed], str],
    plan: Callable[[Composed, str], Plan],
) -> Path:
    root, flow_run_id = sessions_root(), str(runtime.flow_run.id)
    path = session_of(flow_run_id, root)
    if path is None:
        # Composing may load a block from Prefect, which needs a thread without a loop.
        composed = await asyncio.to_thread(compose)
        # Known already if this flow run was killed while it made its session.
        session_id = find.claimed(flow_run_id, root)
        if session_id is None:
            session_id = await asyncio.to_thread(id_of, composed)
        planned = await asyncio.to_thread(plan, composed, session_id)
        await approved(composed, planned)
        path = await asyncio.to_thread(
            create,
            *(composed, planned, root),
            session_id=session_id,
            provenance=provenance(),
            flow_run_id=flow_run_id,
        )
        async with get_client() as client:
            await client.update_flow_run(UUID(flow_run_id), name=_name(path.name))
    return path


async def watch(path: Path) -> State[Any]:
    """Hold a session and watch it until it is over, or until this process is told to stop.

    A person at a terminal always goes on; a flow run that died here too often fails.
    """
    with sinks.plain_errors():
        return await _hold_and_watch(path)


async def _hold_and_watch(path: Path) -> State[Any]:
    log = get_run_logger()
    by = None if foreground() else str(runtime.flow_run.id)
    try:
        with Session.hold(path, monitor_starts.counted(path, by)) as (held, lease):
            if warning := permissions.writable_by_others(path):
                log.warning("%s", warning)
            adopt.retake(held)
            settled = asyncio.get_running_loop().call_later(
                monitor_starts.SETTLED_S, monitor_starts.forget, path
            )
            try:
                return await _watch(held, lease, log)
            finally:
                settled.cancel()
    except SessionGivenUp as error:
        log.error("%s", error)
        return Failed(message=sinks.terminal(str(error)))


async def _watch(held: Session, lease: Lease, log: "logging.Logger | Any") -> State[Any]:
    _note_flow_run(held, str(runtime.flow_run.id), log)
    log.info("session %s in %s", held.id, held.path)
    if held.experiment.monitoring.log_events and (advice := engines.advice()):
        log.info(advice)
    await asyncio.to_thread(refuse_misfit, held)
    run = SessionRun(held, lease, scheduler_for(held.experiment), log)
    if terminal := foreground():
        terminal.listen(run.updates)
    with forwarded(log):
        await run.run()
    return _final_state(run)


def _note_flow_run(session: Session, flow_run_id: str, log: "logging.Logger | Any") -> None:
    """Record that this flow run watches the session, so that whoever cancels it finds it."""
    if flow_run_id in session.meta.flow_run_ids:
        return
    try:
        find.take_up(session.path, [*session.meta.flow_run_ids, flow_run_id])
    except OSError as error:
        log.warning("%s: cannot record flow runs there: %s", session.path.parent, error.strerror)
    session.meta.flow_run_ids.append(flow_run_id)
    session.save_meta()


def _final_state(run: SessionRun) -> State[Any]:
    if not run.session.is_over:
        running = any(job.open_attempts for job in run.session.jobs.values())
        left = "jobs keep running" if running else "no job is running"
        return Crashed(message=f"stopped watching ({run.updates.interrupted}); {left}")
    jobs = run.session.jobs.values()
    if any(job.was_cancelled for job in jobs) and all(
        job.was_cancelled or job.verdict is Verdict.FINISHED for job in jobs
    ):
        return Cancelled(message=sinks.terminal("; ".join(failed_jobs(run.session))))
    failed = failed_jobs(run.session)
    if failed:
        return Failed(message=sinks.terminal("; ".join(failed)))
    return Completed(message=f"all {len(run.session.jobs)} jobs finished")


class _Forward(logging.Handler):
    """Passes warnings to another logger, under which they belong to a flow run."""

    def __init__(self, log: "logging.Logger | Any") -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.log(record.levelno, "%s", record.getMessage())


@contextmanager
def forwarded(log: "logging.Logger | Any") -> Iterator[None]:
    """Send warnings of schedulers to a flow run's log, and nowhere else: each is logged once."""
    schedulers, handler = logging.getLogger(_SCHEDULERS), _Forward(log)
    schedulers.addHandler(handler)
    schedulers.propagate = False
    try:
        yield
    finally:
        schedulers.removeHandler(handler)
        schedulers.propagate = True
