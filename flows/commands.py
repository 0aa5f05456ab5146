"""The commands that need no Prefect: they read sessions, or change them when nobody watches."""

import argparse
import getpass
import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.live import Live

from autoexp import curves, events, inbox, lease
from autoexp.compose import Composed, compose
from autoexp.errors import BadInput, SessionHeld, SessionNotFound
from autoexp.journal import Entry
from autoexp.lease import Holder
from autoexp.monitor import Monitor
from autoexp.plan import make_plan
from autoexp.schedulers.choose import scheduler_for
from autoexp.session import Session, create, sessions_root
from autoexp.status import state_of, status_of
from flows.show import console, gains_lines, print_plan, status_view

_PATIENCE_S = 20.0


def run(options: argparse.Namespace) -> int:
    """Create a session and watch it to its end."""
    composed = _compose(options.experiment)
    if options.dry_run:
        return _print_plan(composed)
    from autoexp.provenance import provenance
    from flows.foreground import watch

    root = sessions_root()
    path = create(composed, root, session_id=options.session, provenance=provenance())
    return watch(path)


def resume(options: argparse.Namespace) -> int:
    """Take a session up again."""
    from flows.foreground import watch

    path = _session_path(options.session)
    session = Session.load(path)
    _refuse_if_held(session)
    return watch(path)


def plan(options: argparse.Namespace) -> int:
    """Show what would be submitted."""
    composed = _compose(options.experiment)
    if not options.json:
        return _print_plan(composed)
    made = make_plan(composed.experiment, _output_root(composed))
    print(made.model_dump_json(indent=1))
    return 0


def status(options: argparse.Namespace) -> int:
    """Show a session."""
    path = _session_path(options.session)
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
    path = _session_path(options.session)
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
    path = _session_path(options.session)
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

    session = Session.load(_session_path(options.session))
    output = Path(options.output).absolute() if options.output else None
    print(draw(session, output))
    for line in gains_lines(curves.gains(session)):
        print(line)
    return 0


def cancel(options: argparse.Namespace) -> int:
    """Cancel jobs: through the monitor when one is alive, else directly."""
    path = _session_path(options.session)
    session = Session.load(path)
    unknown = [name for name in options.jobs if name not in session.jobs]
    if unknown:
        raise BadInput(
            f"{', '.join(unknown)}: no such job; {session.id} has: {', '.join(session.jobs)}"
        )
    by = f"autoexp cancel by {getpass.getuser()}"
    names = options.jobs or [name for name, job in session.jobs.items() if not job.is_over]
    holder = _holder(session)
    if holder is not None:
        inbox.put(path, inbox.CancelRequest(jobs=tuple(options.jobs), by=by))
        print(f"asked the monitor (pid {holder.pid} on {holder.host}) to cancel {len(names)} jobs")
        over = _wait_until_over(path, names)
    else:
        over = _cancel_directly(path, tuple(options.jobs), by, names)
    _report_cancelled(path, names)
    return 0 if over else 1


def _wait_until_over(path: Path, names: list[str]) -> bool:
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        session = Session.load(path)
        if all(session.jobs[name].is_over for name in names):
            return True
        time.sleep(0.25)
    return False


def _cancel_directly(path: Path, jobs: tuple[str, ...], by: str, names: list[str]) -> bool:
    """Nobody watches: hold the session for as long as the cancelling takes."""
    with Session.hold(path) as (session, _):
        inbox.request_cancel(session, jobs, by)
        scheduler = scheduler_for(session.experiment)
        monitor = Monitor(session, ())
        wanted = {name: session.jobs[name] for name in names}
        tickets = [
            session.ticket(job.attempt)
            for job in wanted.values()
            if job.attempt is not None and job.attempt.is_open and job.attempt.job_id is not None
        ]
        for key, answer in scheduler.cancel(tickets).items():
            print(f"{key}: {answer}")
        deadline = time.monotonic() + _PATIENCE_S
        while not all(job.is_over for job in wanted.values()):
            monitor.look(scheduler.query(monitor.tickets()))
            if time.monotonic() > deadline:
                return False
            time.sleep(0.25)
    return True


def _report_cancelled(path: Path, names: list[str]) -> None:
    session = Session.load(path)
    for name in names:
        job = session.jobs[name]
        print(f"{name}: {job.reason if job.is_over else f'{job.state}, not ended yet'}")


def sessions_list(options: argparse.Namespace) -> int:
    """List the sessions below the root."""
    rows: list[dict[str, Any]] = []
    for path in _session_paths():
        session = Session.load(path)
        holder = _holder(session)
        rows.append(
            {
                "session": session.id,
                "created": session.meta.created.isoformat(),
                "state": state_of(session, watched=holder is not None),
                "jobs": len(session.jobs),
            }
        )
    if options.json:
        print(json.dumps(rows, indent=1))
    elif not rows:
        print(f"no sessions in {sessions_root()}")
    for row in [] if options.json else rows:
        print(f"{row['session']:<28} {row['created'][:16]}  {row['state']:<9} {row['jobs']} jobs")
    return 0


def sessions_show(options: argparse.Namespace) -> int:
    """Show a session's jobs, experiment and files."""
    session = Session.load(_session_path(options.session))
    out = console()
    out.print(status_view(status_of(session)))
    out.print(
        f"\nmade from  {session.meta.config} {' '.join(session.meta.overrides)}", markup=False
    )
    out.print(f"directory  {session.path}", soft_wrap=True, markup=False)
    for job in session.jobs.values():
        out.print(f"{job.spec.name}: output {job.spec.output_dir}", soft_wrap=True, markup=False)
    return 0


def sessions_remove(options: argparse.Namespace) -> int:
    """Delete a session, unless jobs of it are alive."""
    path = _session_path(options.session)
    session = Session.load(path)
    _refuse_if_held(session)
    alive = [n for n, job in session.jobs.items() if job.attempt and job.attempt.is_open]
    if alive and not options.cancel:
        raise BadInput(
            f"{session.id}: {', '.join(alive)} may be alive; `autoexp sessions remove "
            f"{session.id} --cancel` cancels first"
        )
    if alive and not _cancel_directly(path, (), "autoexp sessions remove", list(session.jobs)):
        raise BadInput(f"{session.id}: jobs have not ended yet; nothing was removed, try again")
    shutil.rmtree(path)
    print(f"removed {path}")
    return 0


def _compose(words: list[str]) -> Composed:
    """Split the words into a configuration's name and overrides, and compose."""
    names = [word for word in words if "=" not in word and not word.startswith("~")]
    if len(names) > 1:
        raise BadInput(f"one configuration at a time, not {', '.join(names)}")
    overrides = [word for word in words if word not in names]
    return compose(names[0] if names else None, overrides)


def _print_plan(composed: Composed) -> int:
    made = make_plan(composed.experiment, _output_root(composed))
    print_plan(made, console())
    return 0


def _output_root(composed: Composed) -> Path:
    own = composed.experiment.project.output_root
    return (
        (Path(own).absolute() if own else sessions_root()) / "SESSION" / ("" if own else "output")
    )


def _session_paths() -> list[Path]:
    """All sessions, by creation."""
    root = sessions_root()
    found = [path.parent for path in root.glob("*/session.json") if path.parent.name[0] != "."]
    return sorted(
        found, key=lambda path: json.loads((path / "session.json").read_bytes())["created"]
    )


def _session_path(name: str | None) -> Path:
    if name is None:
        paths = _session_paths()
        if not paths:
            raise SessionNotFound(f"no sessions in {sessions_root()}; `autoexp run demo` makes one")
        return paths[-1]
    path = Path(name)
    # A path works as well as an id, so that any session on disk can be opened.
    return path.absolute() if (path / "session.json").exists() else sessions_root() / name


def _holder(session: Session) -> Holder | None:
    holder = lease.look(session.path)
    return holder if holder is not None and holder.alive else None


def _refuse_if_held(session: Session) -> None:
    holder = _holder(session)
    if holder is not None:
        raise SessionHeld(
            f"{session.id}: held by the monitor with pid {holder.pid} on {holder.host}; "
            f"look at it with `autoexp status {session.id} --watch`"
        )
