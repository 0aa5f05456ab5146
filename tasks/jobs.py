"""Effects on jobs: launch a planned one, submit an attempt, cancel."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from autoexp import arrays
from autoexp.backends.base import FoundCheckpoint
from autoexp.events import CheckpointComplete
from autoexp.jobs import Attempt, JobSpec
from autoexp.schedulers.base import Request, Scheduler, Ticket, find_or_forbid, prepare, submit_once
from autoexp.session import Session


@task(name="checkpoint", task_run_name="checkpoint {iteration}", cache_policy=NO_CACHE)
async def checkpoint(job: str, iteration: int) -> str:
    """Stands for a checkpoint in the run graph, with an arrow to what it launched."""
    return f"{job}@{iteration}"


@task(name="pin", task_run_name="pin {spec.name}", cache_policy=NO_CACHE)
async def pin(event: CheckpointComplete, spec: JobSpec, *, fresh: bool) -> str:
    """Give a branch its own start, which the parent's retention cannot delete.

    `fresh` says that the branch has not started: what an earlier checkpoint of the same iteration
    left there, before the training was rolled back, is set aside.
    """

    def in_order() -> int:
        save_dir = Path(spec.save_dir)
        aside = save_dir.with_name(f"{save_dir.name}-set-aside-{event.generation}")
        if fresh and event.generation and save_dir.exists() and not aside.exists():
            save_dir.rename(aside)
        return spec.trainer.seed(FoundCheckpoint(event.iteration, Path(event.path)), save_dir)

    copied = await asyncio.to_thread(in_order)
    if copied:
        warning = "%s: no hard links to %s: copied %.1f MB"
        get_run_logger().warning(warning, spec.title, event.path, copied / 1e6)
    return spec.save_dir


@task(name="submit", task_run_name="submit {ticket.key}", cache_policy=NO_CACHE)
async def submit(
    scheduler: Scheduler,
    ticket: Ticket,
    spec: JobSpec,
    attempt: Attempt,
    avoided: tuple[str, ...],
    *,
    fresh: bool,
) -> str:
    """Submit an attempt once, whatever died in between; returns the scheduler's job id."""

    def in_order() -> str:
        prepare(ticket, spec, attempt, scheduler.orders(spec, attempt))
        request = Request(
            attempt.name,
            attempt.log,
            spec.machine,
            attempt.time_limit_min,
            attempt.after,
            avoided=avoided,
        )
        return submit_once(ticket, request, scheduler, fresh=fresh)

    return await asyncio.to_thread(in_order)


@task(name="submit array", task_run_name="submit {name}", cache_policy=NO_CACHE)
async def submit_array(
    session: Session, group: arrays.Group, scheduler: Scheduler, *, name: str, fresh: bool
) -> list[str]:
    """Submit several attempts as one array; returns the job ids of its tasks."""
    del name  # shown in the run graph
    return await asyncio.to_thread(arrays.submit, session, group, scheduler, fresh=fresh)


@task(name="withdraw", task_run_name="withdraw {attempt.key}", cache_policy=NO_CACHE)
async def withdraw(scheduler: Scheduler, ticket: Ticket, attempt: Attempt) -> str | None:
    """The job id of an attempt that is no longer wanted; None: it will never run."""
    return await asyncio.to_thread(find_or_forbid, ticket, attempt, scheduler)


@task(name="cancel", cache_policy=NO_CACHE)
async def cancel(scheduler: Scheduler, tickets: Sequence[Ticket]) -> dict[str, str]:
    """Cancel attempts; returns what the scheduler answered, by key."""
    return await asyncio.to_thread(scheduler.cancel, tickets)
