"""`autoexp status`, `events` and `tail`: they read sessions, without Prefect."""

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from rich.live import Live

from autoexp.errors import BadInput
from autoexp.reports.status import status_of
from autoexp.reports.tables import status_view
from autoexp.reports.terminal import console, say, say_json, say_log
from autoexp.rules.describe import describe
from autoexp.session.find import session_path
from autoexp.session.journal import Entry, Journal
from autoexp.session.session import Session
from autoexp.storage import atomic

_BLOCK = 65536
_MOST = 8 << 20  # bytes in which the last lines are looked for


def status(options: argparse.Namespace) -> int:
    """Show a session."""
    path = session_path(options.session)
    session = Session.load(path)
    if options.json:
        say_json(status_of(session).model_dump(mode="json"))
    elif options.watch:
        _watch(path)
    else:
        console().print(status_view(status_of(session)))
    return 0


def _watch(path: Path) -> None:
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


def events_(options: argparse.Namespace) -> int:
    """Print the journal."""
    path = session_path(options.session)
    for entry in _entries(path, follow=options.follow):
        if options.json:
            content = {"time": entry.time.isoformat(), "key": entry.event.key}
            say(json.dumps({**content, **entry.event.model_dump(mode="json")}))
        else:
            when = entry.time.astimezone().strftime("%Y-%m-%d %H:%M:%S")
            say(f"{when}  {describe(entry.event)}")
    return 0


def _entries(path: Path, *, follow: bool) -> Iterator[Entry]:
    journal, seen = (Journal(path / "events.jsonl") for _ in range(2))
    while True:
        began = time.monotonic()
        # Before the journal: what happened last is still printed.
        is_over = follow and Session.load(path, seen).is_over
        yield from journal.new_entries()
        if not follow or is_over:
            return
        time.sleep(max(1.0, 20 * (time.monotonic() - began)))


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
    log, start = Path(attempt.log), _last_lines(Path(attempt.log), options.lines)
    _print_name(log)
    while True:
        # Before the log: what it said last is still printed.
        job = Session.load(path, session.journal).jobs[name]
        start = _print_from(log, start)
        if not options.follow or job.is_over:
            return 0
        if job.attempt is not None and job.attempt.log != str(log):
            log, start = Path(job.attempt.log), 0
            _print_name(log)
        time.sleep(0.5)


def _print_name(log: Path) -> None:
    say(f"==> {log} <==", error=True)


def _last_lines(log: Path, lines: int) -> int:
    """Where the last `lines` lines of the log begin, in bytes; within its last 8 MiB at most."""
    if not log.exists():
        return 0
    position = log.stat().st_size
    least = max(0, position - _MOST)
    with atomic.open_to_read(log) as file:
        blocks: list[bytes] = []
        # One more newline than lines: the one before the first of them. The last byte ends one.
        found, end = 0, position - 1
        while position > least and found <= lines:
            step = min(position - least, _BLOCK)
            position -= step
            file.seek(position)
            blocks.append(file.read(step))
            found += blocks[-1].count(b"\n", 0, end - position)
    skipped = b"".join(reversed(blocks)).splitlines(keepends=True)[: -lines or None]
    return position + sum(map(len, skipped))


def _print_from(log: Path, position: int) -> int:
    """Print what the log says now, from a position on; returns where that ends."""
    if not log.exists():
        return position
    with atomic.open_to_read(log) as file:
        # A log that grows faster than it is printed has no end to wait for.
        return position + say_log(_lines(file, position, os.fstat(file.fileno()).st_size))


def _lines(file: BinaryIO, position: int, end: int) -> Iterator[bytes]:
    file.seek(position)
    while position < end and (line := file.readline(min(_BLOCK, end - position))):
        position += len(line)
        yield line
