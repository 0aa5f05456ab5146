"""`autoexp status`, `events` and `tail`: read sessions, without Prefect."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoexp.cli import options
from autoexp.errors import BadInput

if TYPE_CHECKING:
    from autoexp.session.journal import Entry
    from autoexp.session.session import Session


def status(
    name: options.AnySession = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="For tools: the contract in docs/commands.md.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep showing it until it is over.")
    ] = False,
) -> int:
    """Show a session's jobs, iterations and losses.

    The exit code is 0 whatever has become of the jobs; `state` of --json says that.

    \b
    Examples:
      autoexp status
      autoexp status demo-1a2b --watch
    """
    from autoexp.reports import log_end
    from autoexp.reports.status import status_of
    from autoexp.reports.tables import status_view
    from autoexp.reports.terminal import console, say, say_json
    from autoexp.session.find import session_path
    from autoexp.session.session import Session
    from autoexp.storage import permissions

    if as_json and watch:
        raise BadInput("--json or --watch: one of them")
    path = session_path(name)
    if path.exists() and (whose := permissions.stranger(path)) is not None:
        say(f"{path}: is {whose}'s session, to be looked at alone", error=True)
    session = Session.load(path)
    if as_json:
        say_json(status_of(session).model_dump(mode="json"))
        return 0
    if watch:
        session = _watch(path)
    else:
        console().print(status_view(status_of(session)))
    for log in log_end.failed_logs(session):
        log.say()
    return 0


def _watch(path: Path) -> "Session":
    """Show a session until it is over; returns it as it ended."""
    from rich.live import Live

    from autoexp.reports.status import status_of
    from autoexp.reports.tables import status_view
    from autoexp.reports.terminal import console
    from autoexp.session.session import Session

    session = Session.load(path)
    with Live(status_view(status_of(session)), console=console(), auto_refresh=False) as live:
        pause = 1.0
        while not session.is_over:
            time.sleep(pause)
            began = time.monotonic()
            session = Session.load(path, session.journal)
            live.update(status_view(status_of(session)), refresh=True)
            # A thousand jobs take a while to read: no more than a twentieth of the time.
            pause = max(1.0, 20 * (time.monotonic() - began))
    return session


def events(
    name: options.AnySession = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
    follow: options.Follow = False,
) -> int:
    """Print what happened, in order.

    \b
    Example:
      autoexp events demo-1a2b --follow
    """
    from autoexp.reports.terminal import say
    from autoexp.rules.describe import describe
    from autoexp.session.find import session_path

    for entry in _entries(session_path(name), follow=follow):
        if as_json:
            content = {"time": entry.time.isoformat(), "key": entry.event.key}
            say(json.dumps({**content, **entry.event.model_dump(mode="json")}))
        else:
            when = entry.time.astimezone().strftime("%Y-%m-%d %H:%M:%S")
            say(f"{when}  {describe(entry.event)}")
    return 0


def _entries(path: Path, *, follow: bool) -> "Iterator[Entry]":
    from autoexp.session.journal import Journal
    from autoexp.session.session import Session

    journal, seen = (Journal(path / "events.jsonl") for _ in range(2))
    while True:
        began = time.monotonic()
        # Before the journal: what happened last is still printed.
        is_over = follow and Session.load(path, seen).is_over
        yield from journal.new_entries()
        if not follow or is_over:
            return
        time.sleep(max(1.0, 20 * (time.monotonic() - began)))


def tail(
    name: options.AnySession = None,
    job: options.AnyJob = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many.")] = 20,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", "-f", help="Keep printing, across attempts; wait for the first one."
        ),
    ] = False,
) -> int:
    """Print the last lines of a job's log.

    \b
    Examples:
      autoexp tail
      autoexp tail demo-1a2b demo-cd1000 -n 100 -f
    """
    from autoexp.reports import log_end
    from autoexp.reports.status import waits
    from autoexp.reports.terminal import say
    from autoexp.session.find import session_path
    from autoexp.session.session import Session

    path = session_path(name)
    session = Session.load(path)
    job = job or session.first_job
    record = session.job(job)
    if record.attempt is None and (record.is_over or not follow):
        reason = f"{job}: has not been submitted yet, so there is no log"
        raise BadInput(f"{job}: {record.reason}, so there is no log" if record.is_over else reason)
    if record.attempt is None:
        say(f"{job}: waits for its submission ({waits(record) or record.state})", error=True)
    log: Path | None = None
    start = 0
    while True:
        if record.attempt is not None and record.attempt.log != str(log):
            start = 0 if log else log_end.last_lines(Path(record.attempt.log), lines)
            log = Path(record.attempt.log)
            _print_name(log)
        if log is not None:
            start = log_end.print_from(log, start)
        if not follow or record.is_over:
            return 0
        time.sleep(0.5)
        # Before the log: what it said last is still printed.
        record = Session.load(path, session.journal).job(job)


def _print_name(log: Path) -> None:
    from autoexp.reports.terminal import say

    say(f"==> {log} <==", error=True)
