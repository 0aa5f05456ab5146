"""Every effect of a session as a Prefect task: run by it, and retried, or only shown by it."""

import asyncio
import shlex
from collections.abc import Awaitable, Callable
from typing import Any

from prefect import Task, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect_shell.commands import ShellOperation

from autoexp import sinks
from autoexp.errors import AutoexpError
from autoexp.operations import action_runs, arrays
from autoexp.operations.nodes.avoidance import Avoidance, Listing
from autoexp.operations.phases import Effect
from autoexp.operations.step_runs import Cancellation, Replacement, Submission, Withdrawal
from autoexp.schedulers.base import Scheduler

KEPT = 4000  # characters of a command's output that its action keeps


class CommandFailed(AutoexpError):
    """A rule's command did not end with exit code 0; `output` is the end of what it printed."""

    def __init__(self, message: str, output: str) -> None:
        self.output = output
        super().__init__(message)


def _title(parameters: dict[str, Any]) -> str:
    """A task's name in the run graph: its effect's title, or its argument `what`."""
    return sinks.title(parameters["what"] if "what" in parameters else parameters["effect"].title)


_TITLE: Any = _title  # Prefect accepts it, its types do not


# How often each is tried is said here, whatever PREFECT_TASKS_DEFAULT_RETRIES is for others.


def _task(name: str, retries: int = 0, **options: Any) -> Task[..., Any]:
    """A task that runs an effect in a thread; its name is the effect's title."""

    options |= {"task_run_name": _TITLE, "cache_policy": NO_CACHE}

    @task(name=name, retries=retries, **options)
    async def run(effect: Effect, scheduler: Scheduler) -> Any:
        with sinks.plain_errors():
            return await asyncio.to_thread(effect.run, scheduler)

    return run


async def in_thread(effect: Effect, scheduler: Scheduler) -> Any:
    """Run an effect in a thread."""
    with sinks.plain_errors():
        return await asyncio.to_thread(effect.run, scheduler)


def _shown(name: str) -> Task[..., Any]:
    """A task that shows an effect which is under way, or done; its name is the effect's title."""

    # Of a function Prefect visits no part: of an effect each word of its command, three times.
    @task(name=name, task_run_name=_TITLE, cache_policy=NO_CACHE, retries=0)
    async def show(what: str, outcome: Callable[[], Awaitable[Any]]) -> Any:
        with sinks.plain_errors():
            return await outcome()

    return show


@task(name="request", task_run_name=_TITLE, cache_policy=NO_CACHE, retries=0)
async def request(what: str, write: Callable[[], Awaitable[str]]) -> str:
    """Record a rule's request in the session; the monitor processes it."""
    with sinks.plain_errors():
        outcome = await write()
    get_run_logger().info("%s: %s", what, outcome)
    return outcome


@task(name="run command", task_run_name=_TITLE, cache_policy=NO_CACHE, retry_delay_seconds=5)
async def run_command(effect: action_runs.CommandRun) -> str:
    """Run a command to its end; returns the end of its output.

    prefect-shell passes its lines to a shell: each argument is quoted, so the shell reads none.
    Raises CommandFailed with the exit code, or when it did not end in time.
    """
    with sinks.plain_errors():
        return await _run_command(effect)


async def _run_command(effect: action_runs.CommandRun) -> str:
    operation = ShellOperation(
        commands=[f"exec 2>&1; {shlex.join(effect.arguments)}"],
        working_dir=effect.directory,
        env=effect.environment,
        log_prefix=None,
    )
    async with operation:
        process = await operation.atrigger()
        try:
            async with asyncio.timeout(effect.timeout_s):
                await process.await_for_completion()
        except TimeoutError as error:
            output = "\n".join(await process.afetch_result())[-KEPT:]
            raise CommandFailed(f"did not end within {effect.timeout_s:g} s", output) from error
        except RuntimeError as error:
            output = "\n".join(await process.afetch_result())[-KEPT:]
            raise CommandFailed(f"exit code {process.return_code}", output) from error
        return "\n".join(await process.afetch_result())[-KEPT:]


@task(name="publish", task_run_name=_TITLE, cache_policy=NO_CACHE, retries=2)
async def publish(effect: action_runs.Publication, scheduler: Scheduler) -> None:
    """Emit a Prefect event, to which automations can react."""
    del scheduler
    resource = {"prefect.resource.id": f"autoexp.session.{effect.session}"}
    payload = {name: sinks.terminal(value) for name, value in effect.payload.items()}
    with sinks.plain_errors():
        await asyncio.to_thread(emit_event, event=effect.name, resource=resource, payload=payload)


TASKS: dict[type, Task[..., Any]] = {
    action_runs.OwnRun: _task("own action"),
    action_runs.Publication: publish,
    action_runs.Line: _task("write file", retries=2),
    Avoidance: _task("avoid nodes", retries=2, retry_delay_seconds=5),
    Listing: _task("list sick nodes", retries=2, retry_delay_seconds=5),
}
"""Effects that run as tasks, which Prefect may try again."""
SHOWN: dict[type, Task[..., Any]] = {
    Submission: _shown("submit"),
    arrays.Array: _shown("submit array"),
    Withdrawal: _shown("withdraw"),
    Replacement: _shown("replace"),
    Cancellation: _shown("cancel"),
    action_runs.CheckpointMark: _shown("checkpoint"),
    action_runs.Pin: _shown("pin"),
}
"""Effects that jobs wait for: done at once, and shown as tasks beside that."""
