"""`autoexp export`, `compare` and `plot`: what a study was for."""

import argparse
from pathlib import Path

from rich.table import Table

from autoexp.errors import BadInput
from autoexp.reports import curves, results
from autoexp.reports import export as tables
from autoexp.reports.tables import gains_lines
from autoexp.reports.terminal import console, say
from autoexp.session.find import session_path
from autoexp.session.session import Session


def export(options: argparse.Namespace) -> int:
    """Write one row per job and branch."""
    sessions = _sessions(options.sessions)
    found = results.rows(sessions)
    for name in options.output:
        tables.write(found, Path(name))
        say(f"{len(found)} rows: {name}", error=True)
    if options.tensorboard:
        from autoexp.reports.tensorboard import write_events

        folders = write_events(sessions, Path(options.tensorboard))
        say(f"{len(folders)} curves: {options.tensorboard}", error=True)
    elif not options.output:
        say(tables.as_csv(found).removesuffix("\n"))
    return 0


def compare(options: argparse.Namespace) -> int:
    """Print settings that differ, and final losses."""
    found = results.compared(_sessions(options.sessions))
    if not found:
        raise BadInput("no training in these sessions, so there is nothing to compare")
    columns = list(dict.fromkeys(key for row in found for key in row))
    if len(options.sessions) == 1:
        columns.remove("session")
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name.removeprefix("backend.args."), no_wrap=True)
    for row in found:
        table.add_row(*(_cell(row.get(name)) for name in columns))
    out = console()
    out.width = max(out.width, 400) if not out.is_terminal else out.width
    out.print(table)
    return 0


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def plot(options: argparse.Namespace) -> int:
    """Draw the curves and print the picture's path."""
    from autoexp.reports.plot import Subject, draw

    sessions = _sessions(options.sessions or [None])
    output = Path(options.output).absolute() if options.output else None
    say(draw(*map(Subject.of, sessions), path=output))
    for session in sessions:
        for line in gains_lines(curves.gains(session), curves.without_seen_start(session)):
            say(line)
    return 0


def _sessions(names: list[str | None]) -> list[Session]:
    return [Session.load(session_path(name)) for name in names]
