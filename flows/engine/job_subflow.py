"""The subflow of one job, a cooldown or the training: it tells the story, and never polls."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from prefect import Flow, State, flow
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Crashed, Failed

from autoexp import sinks
from autoexp.flows.concurrency.outbox import WriteSlot
from autoexp.jobs.spec import JobSpec
from autoexp.monitor.monitor import JobView
from autoexp.states import Verdict

if TYPE_CHECKING:
    from autoexp.flows.engine.subflows import Subflows

_END_WITHIN_S = 5.0
"""How long an end waits for its turn: to a server that is away, all at once are told in time."""


def job_flow(
    drawing: "Subflows", spec: JobSpec, slot: WriteSlot, begin: Callable[[str | None], None]
) -> Flow[..., Any]:
    """A subflow for one job of the session; `begin` says that it has started.

    It starts and ends in turn: `slot` is taken, and is given up by whoever called it.

    Each job gets a flow object of its own. Prefect matches the subflows of a flow run that is run
    again by their name and the order of the calls, so with one shared function a call would
    return the result of another job (Prefect issue 18601).
    """

    async def job_subflow(after: Sequence[str] = ()) -> State[Any]:
        del after  # draws the arrows from what started this job
        with sinks.plain_errors():
            begin(flow_run.id)
            slot.release()
            job = await drawing.outcome(spec.name)
            await slot.take(_END_WITHIN_S)
            return final_state(job)

    job_subflow.__qualname__ = f"{spec.kind}.{spec.name}"
    decorate = flow(name=str(spec.kind), flow_run_name=spec.title, validate_parameters=False)
    return decorate(job_subflow)


def final_state(job: JobView) -> State[Any]:
    """How the job's subflow ends."""
    reason = job.reason and sinks.terminal(job.reason)
    if job.was_cancelled:
        return Cancelled(message=reason)
    match job.verdict:
        case Verdict.FINISHED:
            return Completed(message=reason)
        case Verdict.FAILED:
            log = f". Read {sinks.terminal(job.log)}" if job.log else ""
            return Failed(message=f"{reason}{log}")
        case _:
            left = "the job keeps running" if job.is_in_queue else "no job of it is running"
            return Crashed(message=f"the monitor was stopped; {left}")
