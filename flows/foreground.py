"""`autoexp run` and `resume`: the session flow in this process, with a view of it."""

import asyncio
import logging
import os
from pathlib import Path

from rich.console import Console

from autoexp.curves import gains
from autoexp.errors import AutoexpError
from autoexp.jobs import Verdict
from autoexp.session import Session
from autoexp.status import status_of
from flows.live import LiveView
from flows.server import embedded_server, is_configured
from flows.show import console, gains_lines, status_view

INTERRUPTED = 130


def watch(path: Path) -> int:
    """Watch a session to its end; returns the exit code of DESIGN.md."""
    out = console()
    out.print(f"session {path.name} in {path}", soft_wrap=True, markup=False)
    try:
        _run_flow(path, out)
    except KeyboardInterrupt:
        pass
    except AutoexpError:
        raise
    except Exception as error:
        out.print_exception()
        raise AutoexpError(
            f"{path.name}: the monitor broke down ({type(error).__name__}: {error}); its jobs keep "
            f"running. `autoexp resume {path.name}` takes the session up again"
        ) from error
    session = Session.load(path)
    if not session.is_over:
        _say_how_to_go_on(session, out)
        return INTERRUPTED
    _print_end(session, out)
    failed = any(job.verdict is Verdict.FAILED for job in session.jobs.values())
    return 1 if failed else 0


def _run_flow(path: Path, out: Console) -> None:
    """Run the session flow; without a Prefect server of the user's own, with an embedded one."""
    server = None
    if not is_configured():
        server = embedded_server(path / "prefect-server.log")
        os.environ["PREFECT_API_URL"] = f"{server.url}/api"
    # Takes seconds, in which the server starts.
    from prefect.exceptions import CrashedRun, FailedRun

    from flows.context import enter_foreground
    from flows.train import train

    _quieten()
    if server is not None:
        server.wait()
        out.print(f"Prefect UI while it runs: {server.url}", markup=False)
    os.environ["AUTOEXP_SESSIONS"] = str(path.parent)
    enter_foreground()

    async def watched() -> None:
        state = await train(session=path.name, return_state=True)
        # What the flow returned is told from the session's files; only what it raised is news.
        error = await state.aresult(raise_on_failure=False)
        if isinstance(error, Exception) and not isinstance(error, (FailedRun, CrashedRun)):
            raise error

    with LiveView(path, out):
        asyncio.run(watched())


def _quieten() -> None:
    """Keep Prefect's log off the terminal below warnings; the view shows what happens."""
    for handler in logging.getLogger("prefect").handlers:
        handler.setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.WARNING)
        # "Still processing items", said at every start and end of a run, is no news to anyone.
        handler.addFilter(lambda record: "EventsWorker" not in record.name)


def _say_how_to_go_on(session: Session, out: Console) -> None:
    alive = [name for name, job in session.jobs.items() if job.open_attempts]
    out.print(status_view(status_of(session)))
    out.print(
        f"\nStopped watching; {len(alive)} jobs keep running.\n"
        f"  autoexp resume {session.id}   takes the session up again\n"
        f"  autoexp cancel {session.id}   cancels its jobs",
        markup=False,
    )


def _print_end(session: Session, out: Console) -> None:
    out.print(status_view(status_of(session)))
    out.print()
    for line in gains_lines(gains(session)):
        out.print(line, markup=False)
    for job in session.jobs.values():
        if job.verdict is Verdict.FAILED:
            log = f" Read {job.attempt.log}" if job.attempt else ""
            out.print(f"{job.spec.name} failed: {job.reason}.{log}", markup=False, soft_wrap=True)
    picture = session.path / "plot.png"
    if picture.exists():
        out.print(f"plot: {picture}", soft_wrap=True, markup=False)
