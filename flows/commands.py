"""The commands that need no Prefect: they read sessions, or change them when nobody watches."""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.live import Live

from autoexp import curves, events
from autoexp.compose import Composed
from autoexp.creation import create, output_root
from autoexp.errors import BadInput
from autoexp.journal import Entry
from autoexp.plan import make_plan
from autoexp.session import Session, sessions_root
from autoexp.status import status_of
from flows.finding import compose_words, refuse_if_held, session_path
from flows.show import console, gains_lines, print_plan, status_view


def run(options: argparse.Namespace) -> int:
    """Create a session and watch it to its end."""
    composed = compose_words(options.experiment)
    if options.dry_run:
        return _print_plan(composed)
    if options.no_monitor:
        from flows.joining import add_jobs

        return add_jobs(composed, options.session)
    from autoexp.provenance import provenance
    from flows.foreground import watch

    root = sessions_root()
    path = create(composed, root, session_id=options.session, provenance=provenance())
    return watch(path)


def resume(options: argparse.Namespace) -> int:
    """Take a session up again."""
    from flows.foreground import watch

    path = session_path(options.session)
    session = Session.load(path)
    refuse_if_held(session)
    return watch(path)


def plan(options: argparse.Namespace) -> int:
    """Show what would be submitted."""
    composed = compose_words(options.experiment)
    if not options.json:
        return _print_plan(composed)
    made = make_plan(
        composed.experiment, output_root(composed.experiment, sessions_root() / "SESSION")
    )
    print(made.model_dump_json(indent=1))
    return 0


def status(options: argparse.Namespace) -> int:
    """Show a session."""
    path = session_path(options.session)
    session = Session.load(path)
    if options.json:
        print(status_of(session).model_dump_json(indent=1))
    elif options.watch:
        _watch(path)
    else:
        console().print(status_view(status_of(session)))
    return 0


def _watch(path: Path) -> None:
    session = Session.load(path)
    with Live(status_view(status_of(session)), console=console(), auto_refresh=False) as live:
        while not session.is_over:
            time.sleep(1.0)
            session = Session.load(path)
            live.update(status_view(status_of(session)), refresh=True)


def events_(options: argparse.Namespace) -> int:
    """Print the journal."""
    path = session_path(options.session)
    for entry in _entries(path, follow=options.follow):
        if options.json:
            content = {"time": entry.time.isoformat(), "key": entry.event.key}
            print(json.dumps({**content, **entry.event.model_dump(mode="json")}), flush=True)
        else:
            when = entry.time.astimezone().strftime("%Y-%m-%d %H:%M:%S")
            print(f"{when}  {events.describe(entry.event)}", flush=True)
    return 0


def _entries(path: Path, *, follow: bool) -> Iterator[Entry]:
    shown = 0
    while True:
        session = Session.load(path)
        yield from session.journal.entries[shown:]
        shown = len(session.journal)
        if not follow or session.is_over:
            return
        time.sleep(1.0)


def tail(options: argparse.Namespace) -> int:
    """Print the end of a job's log, and follow it across attempts."""
    path = session_path(options.session)
    session = Session.load(path)
    name = options.job or next(iter(session.jobs))
    if name not in session.jobs:
        raise BadInput(f"{name}: no such job; {session.id} has: {', '.join(session.jobs)}")
    attempt = session.jobs[name].attempt
    if attempt is None:
        raise BadInput(f"{name}: has not been submitted yet, so there is no log")
    log = Path(attempt.log)
    print(f"==> {log} <==", file=sys.stderr)
    position = _print_end(log, options.lines)
    while options.follow and not Session.load(path).jobs[name].is_over:
        time.sleep(0.5)
        position = _print_from(log, position)
    return 0


def _print_end(log: Path, lines: int) -> int:
    if not log.exists():
        return 0
    size = log.stat().st_size
    start = max(0, size - 400 * max(1, lines))
    with log.open("rb") as file:
        file.seek(start)
        found = file.read(size - start).splitlines(keepends=True)
    if start:
        found = found[1:]
    sys.stdout.buffer.write(b"".join(found[-lines:]))
    sys.stdout.flush()
    return size


def _print_from(log: Path, position: int) -> int:
    if not log.exists():
        return position
    with log.open("rb") as file:
        file.seek(position)
        new = file.read()
    sys.stdout.buffer.write(new)
    sys.stdout.flush()
    return position + len(new)


def plot(options: argparse.Namespace) -> int:
    """Draw the curves and print the picture's path."""
    from autoexp.plot import draw

    session = Session.load(session_path(options.session))
    output = Path(options.output).absolute() if options.output else None
    print(draw(session, output))
    for line in gains_lines(curves.gains(session)):
        print(line)
    return 0


def _print_plan(composed: Composed) -> int:
    made = make_plan(
        composed.experiment, output_root(composed.experiment, sessions_root() / "SESSION")
    )
    print_plan(made, console())
    return 0
