"""Effects of rules, one Prefect task each. Those that repeating does no harm are tried again."""

import asyncio
import shlex
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect_shell.commands import ShellOperation

from autoexp import durable
from autoexp.errors import AutoexpError
from autoexp.jobs import Attempt, JobSpec
from autoexp.payload import processes_with_cookie
from autoexp.schedulers.base import Scheduler, Ticket

KEPT = 4000  # characters of a command's output that its action keeps
_LEVELS = {"info": 20, "warning": 30, "error": 40}


class CommandFailed(AutoexpError):
    """A rule's command did not end with exit code 0; `output` is the end of what it printed."""

    def __init__(self, message: str, output: str) -> None:
        self.output = output
        super().__init__(message)


@task(name="request", task_run_name="{what}", cache_policy=NO_CACHE)
async def request(what: str, write: Callable[[], Awaitable[str]]) -> str:
    """Write into the session's records what a rule asks for; the monitor sees to it."""
    said = await write()
    get_run_logger().info("%s: %s", what, said)
    return said


@task(name="log", cache_policy=NO_CACHE)
async def log(message: str, level: str) -> str:
    """Say something in the session's log."""
    get_run_logger().log(_LEVELS[level], message)
    return message


@task(name="run command", task_run_name="run {what}", cache_policy=NO_CACHE, retry_delay_seconds=5)
async def run_command(
    what: str,
    arguments: Sequence[str],
    *,
    directory: Path,
    environment: Mapping[str, str],
    timeout_s: float,
) -> str:
    """Run a command to its end; returns the end of its output.

    prefect-shell hands its lines to a shell: each argument is quoted, so none is read by it.
    Raises CommandFailed with the exit code, or when it has not ended in time.
    """
    del what  # shown in the run graph
    operation = ShellOperation(
        commands=[f"exec 2>&1; {shlex.join(arguments)}"],
        working_dir=directory,
        env=dict(environment),
        log_prefix=None,
    )
    async with operation:
        process = await operation.atrigger()
        try:
            async with asyncio.timeout(timeout_s):
                await process.await_for_completion()
        except TimeoutError as error:
            output = "\n".join(await process.afetch_result())[-KEPT:]
            raise CommandFailed(f"not ended within {timeout_s:g} s", output) from error
        except RuntimeError as error:
            output = "\n".join(await process.afetch_result())[-KEPT:]
            raise CommandFailed(f"exit code {process.return_code}", output) from error
        return "\n".join(await process.afetch_result())[-KEPT:]


@task(name="publish", task_run_name="publish {name}", cache_policy=NO_CACHE, retries=2)
async def publish(name: str, session: str, payload: Mapping[str, str]) -> None:
    """Emit a Prefect event, to which automations can react."""
    resource = {"prefect.resource.id": f"autoexp.session.{session}"}
    await asyncio.to_thread(emit_event, event=name, resource=resource, payload=dict(payload))


@task(name="write file", task_run_name="write {path}", cache_policy=NO_CACHE, retries=2)
async def write_file(path: Path, line: str) -> str:
    """Append a line, unless it stands there already."""
    return await asyncio.to_thread(_append_once, path, line)


def _append_once(path: Path, line: str) -> str:
    raw = line.replace("\n", " ").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    content = path.read_bytes() if path.exists() else b""
    if raw in content.split(b"\n"):
        return "stands there already"
    # A line that somebody left without an end is not continued.
    start = b"\n" if content and not content.endswith(b"\n") else b""
    durable.append(path, start + raw + b"\n")
    return "written"


@task(name="set aside", task_run_name="set aside behind {after}", cache_policy=NO_CACHE)
async def set_aside(spec: JobSpec, attempts: Sequence[Attempt], after: int) -> list[str]:
    """Rename the checkpoints behind an iteration, once nothing of the job is alive here."""

    def in_order() -> list[str]:
        alive = [pid for attempt in attempts for pid in processes_with_cookie(attempt.key)]
        if alive:
            raise TimeoutError(f"{spec.name}: processes {alive} are alive still")
        return spec.trainer.set_aside(Path(spec.save_dir), after)

    return await asyncio.to_thread(in_order)


@task(name="avoid nodes", cache_policy=NO_CACHE, retries=2, retry_delay_seconds=5)
async def avoid(scheduler: Scheduler, tickets: Sequence[Ticket], nodes: Sequence[str]) -> None:
    """Have jobs that wait in the queue start elsewhere."""
    await asyncio.to_thread(scheduler.avoid, tickets, nodes)
