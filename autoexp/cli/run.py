"""`autoexp run` and `resume`: the session flow in this process, with a view of it."""

import asyncio
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoexp.cli import options, submit
from autoexp.cli import plan as planning
from autoexp.errors import AutoexpError
from autoexp.storage.places import sessions_root

if TYPE_CHECKING:
    from rich.console import Console

    from autoexp.flows.deployment.server import Server
    from autoexp.session.session import Session


def run(
    experiment: options.Experiment = None,
    points: options.Subset = None,
    origin: options.Origin = None,
    session: Annotated[
        str | None,
        options.option("--session", metavar="ID", text="The new session's id; made up by default."),
    ] = None,
    no_monitor: Annotated[
        bool, typer.Option("--no-monitor", help="Only register it, as `submit` does.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show the plan and write its batch scripts, no more."),
    ] = False,
    yes: options.Yes = False,
) -> int:
    """Start a session: submit the training and watch it.

    \b
    Examples:
      autoexp run demo
      autoexp run demo slurm=lumi slurm.nodes=4 backend.args.lr=1e-3
      autoexp run --from demo-1a2b:demo@1200
    """
    from autoexp.reports.terminal import say
    from autoexp.session.create import create, id_for, plan_of
    from autoexp.session.provenance import provenance

    composed = planning.wanted(experiment or [], points, origin)
    if dry_run:
        return planning.dry_run(composed, session)
    name = session or id_for(composed)
    if no_monitor:
        return submit.register(composed, name, yes=yes)
    plan = plan_of(composed, name)
    if not planning.agree(composed, plan, yes=yes):
        say("nothing was submitted")
        return 2
    return watch(create(composed, plan, sessions_root(), session_id=name, provenance=provenance()))


def resume(name: options.AnySession = None) -> int:
    """Resume a session where it stands.

    \b
    Example:
      autoexp resume demo-1a2b
    """
    from autoexp.operations import adopt
    from autoexp.session.find import refuse_if_held, session_path
    from autoexp.session.session import Session

    path = session_path(name)
    session = Session.load(path)
    refuse_if_held(session)
    adopt.retake(session)  # here too, before a server is started
    return watch(path)


INTERRUPTED = 130
_SERVER_SILENT = (
    "The Prefect server does not answer, or refuses; its records of this run are incomplete. "
    "Nothing is lost: the session's directory has it."
)
# For what Prefect sends at the interpreter's exit, for as long as it takes.
_LAST_WORDS_S = 10.0
_FIRST_ANSWER_S = 60.0


def watch(path: Path) -> int:
    """Watch a session to its end; returns the exit code of docs/commands.md."""
    from autoexp.flows.concurrency.interrupts import exit_after
    from autoexp.flows.concurrency.outbox import is_prefect_error
    from autoexp.reports.terminal import console
    from autoexp.session.session import Session

    _must_be_writable(path)
    out = console()
    out.print(f"session {path.name} in {path}", soft_wrap=True)
    server_knows = True
    try:
        server_knows = _run_flow(path, out)
    except KeyboardInterrupt:
        pass
    except (AutoexpError, OSError):
        raise
    except Exception as error:
        server_knows = False
        _must_be_there(path)
        if not (is_prefect_error(error) and Session.load(path).is_over):
            _must_answer(path, _api_url())
            out.print_exception()
            raise AutoexpError(
                f"{path.name}: the monitor crashed ({type(error).__name__}: {error})"
                f"{_left_running(path)}. `autoexp resume {path.name}` resumes the session"
            ) from error
    _must_be_there(path)
    session = Session.load(path)
    if not server_knows and session.is_over:
        _draw(session)  # as the flow would have done, had Prefect taken the picture
    code = _print_outcome(session, out)
    if not server_knows:
        out.print(_SERVER_SILENT)
    exit_after(_LAST_WORDS_S if server_knows else 1.0, code, _SERVER_SILENT if server_knows else "")
    return code


def _must_be_writable(path: Path) -> None:
    """Before anything is begun: a disk may be full, or read-only."""
    from autoexp.storage import atomic

    try:
        atomic.probe(path, atomic.ROOM + (path / "session.json").stat().st_size)
    except OSError as error:
        raise AutoexpError(
            f"{path}: the session cannot be written ({error.strerror}), so nothing was changed; "
            f"free space there or make it writable, then `autoexp resume {path.name}`"
        ) from error


def _must_be_there(path: Path) -> None:
    """After the watching: whoever removes or moves a session ends it so."""
    from autoexp.storage import lease

    if not (path / "session.json").exists():
        raise AutoexpError(lease.gone(path))


def _must_be_ours(path: Path, url: str) -> None:
    from autoexp.flows.deployment.server import refuse_strangers

    try:
        refuse_strangers(url)
    except AutoexpError as error:
        raise AutoexpError(f"{path.name}: {error}{_left_running(path)}") from error


def _must_answer(path: Path, url: str) -> None:
    from autoexp.flows.deployment.server import problem

    wrong = problem(url, _auth_string())
    if wrong is None:
        return
    start = (
        ". Start it (`prefect server start`), or unset PREFECT_API_URL to have one started for you"
    )
    advice = "" if "export" in wrong else start
    raise AutoexpError(
        f"{path.name}: Prefect's server at {wrong}{advice}; then `autoexp resume {path.name}`"
        f"{_left_running(path)}"
    )


async def _must_take_requests(path: Path, url: str) -> None:
    """Ask for what needs the server's database and the right login, not for its health alone.

    Prefect's own client would try on for many minutes.
    """
    from prefect import get_client

    try:
        connection = get_client()
    except (ImportError, ValueError) as error:
        raise AutoexpError(
            f"{path.name}: Prefect's client does not start ({error}). Where this is about a proxy, "
            "unset the variables that name it (`env | grep -i proxy`), or install what is missing; "
            f"then `autoexp resume {path.name}`{_left_running(path)}"
        ) from error
    try:
        async with asyncio.timeout(_FIRST_ANSWER_S), connection as client:
            await client.read_flow_runs(limit=1)
    except Exception as error:
        said = " ".join(str(error).split())[:200] or f"nothing within {_FIRST_ANSWER_S:.0f} s"
        raise AutoexpError(
            f"{path.name}: Prefect's server at {url} is there, but does not list its flow runs "
            f"({said}). See to it, or to PREFECT_API_URL and the login (PREFECT_API_KEY, "
            f"PREFECT_API_AUTH_STRING); then `autoexp resume {path.name}`{_left_running(path)}"
        ) from error


def _left_running(path: Path) -> str:
    """What is said of jobs where a monitor ends early."""
    from autoexp.session.session import Session

    count = len(_alive(Session.load(path)))
    return f"; {_counted(count)} running" if count else ""


def _alive(session: "Session") -> list[str]:
    return [name for name, job in session.jobs.items() if job.open_attempts]


def _counted(count: int) -> str:
    return "1 job keeps" if count == 1 else f"{count} jobs keep"


def _api_url() -> str:
    from prefect.settings import PREFECT_API_URL

    return str(PREFECT_API_URL.value())


def _auth_string() -> str | None:
    from prefect.settings import PREFECT_API_AUTH_STRING

    return PREFECT_API_AUTH_STRING.value() or None


def _run_flow(path: Path, out: "Console") -> bool:
    """Run the session flow; without a Prefect server of the user's own, with an embedded one.

    Returns whether Prefect has the final state.
    """
    from autoexp.flows.concurrency.foreground import Foreground, enter_foreground
    from autoexp.flows.concurrency.interrupts import run_in_thread, stopping_on_signals
    from autoexp.flows.concurrency.visits import OWN_HEADER
    from autoexp.flows.deployment.server import embedded_server, warning_when_open
    from autoexp.reports.live import LiveView
    from autoexp.reports.terminal import say
    from autoexp.storage import atomic

    foreground = Foreground()
    with stopping_on_signals(foreground):
        atomic.append(path / "prefect-server.log", b"")  # made as all of a session is
        if (server := embedded_server(path)) is not None:
            os.environ["PREFECT_API_URL"] = f"{server.url}/api"
            os.environ["PREFECT_API_AUTH_STRING"] = server.auth_string
            os.environ["PREFECT_CLIENT_CUSTOM_HEADERS"] = json.dumps({OWN_HEADER: "1"})
            # Prefect's thread for log lines wakes up this often, whether there are any or not.
            os.environ.setdefault("PREFECT_LOGGING_TO_API_BATCH_INTERVAL", "5")
            foreground.visits = server.visits
        # Takes seconds, in which the server starts.
        from prefect.exceptions import CrashedRun, FailedRun

        from autoexp.flows.train import train

        _quieten()
        url = _api_url()
        if server is None:
            _must_be_ours(path, url)
            _must_answer(path, url)
            if warning := warning_when_open(url):
                say(warning, error=True)
        else:
            server.wait()
            _say_where_it_is(server, out)
        asyncio.run(_must_take_requests(path, url))
        os.environ["AUTOEXP_SESSIONS"] = str(path.parent)
        enter_foreground(foreground)

        async def watched() -> None:
            with _quietly() if server is not None else nullcontext():
                state = await train(session=path.name, return_state=True)
            # The outcome is read from the session's files; only what the flow raised matters here.
            error = await state.aresult(raise_on_failure=False)
            if isinstance(error, Exception) and not isinstance(error, (FailedRun, CrashedRun)):
                raise error

        with LiveView(path, out):
            return run_in_thread(foreground, lambda: asyncio.run(watched()))


@contextmanager
def _quietly() -> Iterator[None]:
    """Report what happens alone, so that an embedded server comes to rest in between."""
    from prefect.events.worker import EventsWorker
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    from autoexp.flows.publishing.posted_events import PostedEvents

    EventsWorker.set_client_override(PostedEvents)
    # Heartbeats are for those who would resume a flow that died: such a server dies with it.
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def _say_where_it_is(server: "Server", out: "Console") -> None:
    """The UI's address, which opens it for whoever sits at the terminal; a log gets no secret."""
    opens = f"/#{server.auth_string}" if out.is_terminal else f"  (its login: {server.login})"
    line = f"Prefect UI while it runs: {server.url}{opens}"
    out.print(line, soft_wrap=True)


def _print_outcome(session: "Session", out: "Console") -> int:
    from autoexp.states import Verdict

    if not session.is_over:
        _say_how_to_go_on(session, out)
        return INTERRUPTED
    _print_end(session, out)
    return 1 if any(job.verdict is Verdict.FAILED for job in session.jobs.values()) else 0


def _draw(session: "Session") -> None:
    from autoexp.reports import plot

    plot.draw(plot.Subject.of(session))


def _quieten() -> None:
    """Keep Prefect's log off the terminal below warnings; the view shows what happens."""
    from autoexp import sinks

    for name in ("", "prefect", "prefect._internal"):
        for handler in logging.getLogger(name).handlers:
            handler.setLevel(logging.WARNING)
            handler.addFilter(_is_shown)
            handler.addFilter(sinks.LINES)
    # A server that is gone takes no log lines, and each try would write to the terminal.
    logging.raiseExceptions = False


def _is_shown(record: logging.LogRecord) -> bool:
    """Not what Prefect says of its own sending: autoexp says once that a server is away.

    Nor how a run ended: the job's event has just said that.
    """
    own = record.name.startswith(("prefect.events", "prefect._internal"))
    known = own or record.getMessage().startswith("Finished in state")
    return not known and "EventsWorker" not in record.name


def _say_how_to_go_on(session: "Session", out: "Console") -> None:
    from autoexp.reports.status import status_of
    from autoexp.reports.tables import status_view

    alive = _alive(session)
    status = status_of(session)
    if status.monitor is not None and status.monitor.pid == os.getpid():
        # A flow that was left alone holds the session until this process ends.
        status = status.model_copy(update={"state": "stopped", "monitor": None})
    out.print(status_view(status))
    out.print(
        f"\nStopped watching; {_counted(len(alive)) if alive else 'no job is'} running.\n"
        f"  autoexp resume {session.id}   resumes the session\n"
        f"  autoexp cancel {session.id}   cancels its jobs",
    )


def _print_end(session: "Session", out: "Console") -> None:
    from autoexp.reports.curves import gains, without_seen_start
    from autoexp.reports.status import status_of
    from autoexp.reports.tables import gains_lines, status_view
    from autoexp.states import Verdict

    out.print(status_view(status_of(session)))
    out.print()
    for line in gains_lines(gains(session), without_seen_start(session)):
        out.print(line)
    for job in session.jobs.values():
        if job.verdict is Verdict.FAILED:
            log = f" Read {job.attempt.log}" if job.attempt else ""
            out.print(f"{job.spec.name} failed: {job.reason}.{log}", soft_wrap=True)
    picture = session.path / "plot.png"
    if picture.exists():
        out.print(f"plot: {picture}", soft_wrap=True)
