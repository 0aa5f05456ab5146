"""The hook that cancels a session's jobs once its flow run is cancelled and its process dead."""

import time
from typing import Any

from prefect import Flow, State, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.logging.loggers import flow_run_logger
from prefect.states import Cancelled

from autoexp.operations.cancel import cancel_directly
from autoexp.session import find
from autoexp.session.find import session_of
from autoexp.session.session import Session
from autoexp.storage.places import sessions_root

_LATE_S = 10.0


def cancel_jobs(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Cancel the session's jobs; a worker runs this in a process of its own.

    Under a worker a cancelled flow is killed before it can do so by itself. A crash or a worker's
    shutdown does not come here: they cancel nothing.
    """
    root = sessions_root()  # a worker runs hooks where it has run the flow
    named = flow_run.parameters.get("session")
    path = session_of(str(flow_run.id), root)
    if path is None and named and find.is_of(root / named, str(flow_run.id)):
        path = root / named  # where the root's index could not be written
    if path is None:
        return
    log = flow_run_logger(flow_run, flow)
    outcome = cancel_directly(path, (), "cancelled in Prefect")
    for key, answer in outcome.answers.items():
        log.info("cancel %s: %s", key, answer)
    if outcome.problem is not None:
        log.error("not ended yet: %s; `autoexp cancel %s` retries", outcome.problem, path.name)
    begun = sum(bool(job.attempts) for job in Session.load(path).jobs.values())
    _close_subflows(flow_run, begun)


def _close_subflows(flow_run: FlowRun, begun: int) -> None:
    """End the jobs' subflows, which died with the flow's process.

    There is one for each job that was `begun`; the server may still be writing the last one that
    the process had started when it was killed.
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
