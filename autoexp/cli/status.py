"""`autoexp status`, `events` and `tail`: read sessions, without Prefect."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoexp.cli import options
from autoexp.errors import BadInput

if TYPE_CHECKING:
    from autoexp.index.overview import Overview
    from autoexp.session.journal import Entry

_SHOWN = 1000
"""Events that a terminal shows at most, unless it is said how many."""


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
    from autoexp.index.overview import Overview
    from autoexp.reports import log_end
    from autoexp.reports.status import shown, whole_status
    from autoexp.reports.tables import status_view
    from autoexp.reports.terminal import console, say, say_json
    from autoexp.session.find import session_path
    from autoexp.storage import permissions

    if as_json and watch:
        raise BadInput("--json or --watch: one of them")
    path = session_path(name)
    if path.exists() and (whose := permissions.stranger(path)) is not None:
        say(f"{path}: is {whose}'s session, to be looked at alone", error=True)
    overview = Overview(path).read()
    if as_json:
        say_json(whole_status(overview).model_dump(mode="json"))
        return 0
    if watch:
        _watch(overview)
    else:
        console().print(status_view(shown(overview)))
    for log in log_end.failed_logs_of(overview):
        log.say()
    return 0


def _watch(overview: "Overview") -> None:
    from rich.live import Live

    from autoexp.reports.status import shown
    from autoexp.reports.tables import status_view
    from autoexp.reports.terminal import console

    with Live(status_view(shown(overview)), console=console(), auto_refresh=False) as live:
        pause = 1.0
        while not overview.is_over:
            time.sleep(pause)
            began = time.monotonic()
            live.update(status_view(shown(overview.read())), refresh=True)
            # A thousand jobs take a while to read: no more than a twentieth of the time.
            pause = max(1.0, 20 * (time.monotonic() - began))


def events(
    name: options.AnySession = None,
    job: Annotated[
        str | None,
        options.option("--job", metavar="JOB", text="Of one job.", completion=options.job_names),
    ] = None,
    lines: Annotated[
        int | None,
        typer.Option(
            "--lines",
            "-n",
            min=1,
            help=f"How many, the newest; in a terminal {_SHOWN:,} by default, else all.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
    follow: options.Follow = False,
) -> int:
    """Print what happened, in order.

    \b
    Examples:
      autoexp events demo-1a2b --follow
      autoexp events demo-1a2b --job demo-cd1000
    """
    from autoexp.reports.terminal import say
    from autoexp.rules.describe import describe
    from autoexp.session.find import must_exist, session_path

    path = session_path(name)
    must_exist(path)
    if job is not None and follow:
        raise BadInput("--job or --follow: one of them")
    most = lines or (_SHOWN if sys.stdout.isatty() and not as_json else None)
    for entry in _of_job(path, job, lines) if job else _entries(path, most, follow=follow):
        if as_json:
            content = {"time": entry.time.isoformat(), "key": entry.event.key}
            say(json.dumps({**content, **entry.event.model_dump(mode="json")}))
        else:
            when = entry.time.astimezone().strftime("%Y-%m-%d %H:%M:%S")
            say(f"{when}  {describe(entry.event)}")
    return 0


def _of_job(path: Path, job: str, lines: int | None) -> "Sequence[Entry]":
    """The events of a job; raises BadInput for an unknown one of which there are none."""
    from autoexp.index.events import EventIndex
    from autoexp.index.overview import job_file

    entries = EventIndex(path).read().of_job(job)
    if not entries:
        job_file(path, job)
    return entries[-(lines or len(entries)) :]


def _entries(path: Path, most: int | None, *, follow: bool) -> "Iterator[Entry]":
    """The newest entries, or all; then, for as long as the session is not over, each new one."""
    from autoexp.index.overview import Overview
    from autoexp.reports.terminal import say
    from autoexp.session.journal import Journal

    journal, overview = Journal(path / "events.jsonl"), Overview(path)
    if most is not None:
        newest = journal.newest(most)
        if len(newest) == most and sys.stdout.isatty():
            say(f"the newest {most:,}; `--lines` shows more, `--job` one job's", error=True)
        yield from newest
    while True:
        began = time.monotonic()
        # Before the journal: what happened last is still printed.
        is_over = follow and overview.read().is_over
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
    from autoexp.index.overview import Overview, job_file
    from autoexp.jobs.record import JobRecord
    from autoexp.jobs.summary import waits
    from autoexp.reports import log_end
    from autoexp.reports.terminal import say
    from autoexp.session.find import must_exist, session_path
    from autoexp.storage import migrations

    path = session_path(name)
    must_exist(path)
    file = job_file(path, job or Overview(path).read().first_job)
    record = migrations.read(file, JobRecord)
    job = record.spec.name
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
        record = migrations.read(file, JobRecord)


def _print_name(log: Path) -> None:
    from autoexp.reports.terminal import say

    say(f"==> {log} <==", error=True)
