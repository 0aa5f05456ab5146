"""The commands that change sessions from outside: cancel, list, show, remove."""

import getpass
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoexp.cli import options
from autoexp.errors import AutoexpError, BadInput
from autoexp.storage.places import sessions_root

if TYPE_CHECKING:
    from autoexp.session.find import Found
    from autoexp.session.journal import Position
    from autoexp.session.session import Session

_PATIENCE_S = 90.0
_SHORTEST_WAIT_S = 1.0
_REMINDER_S = 15.0


def cancel(
    name: options.Session,
    jobs: Annotated[
        list[str] | None,
        options.argument("JOB", "All of the session's by default.", options.job_names),
    ] = None,
) -> int:
    """Cancel jobs, pending or running.

    A live monitor cancels them on request; without one this command does.

    \b
    Examples:
      autoexp cancel demo-1a2b
      autoexp cancel demo-1a2b demo-cd1000
    """
    from autoexp.reports.terminal import say
    from autoexp.session.find import live_holder, no_such_job, own_session_path, whose_turn
    from autoexp.session.inbox import CancelRequest, enqueue, waiting_jobs
    from autoexp.session.session import Session

    path = own_session_path(name)
    session = Session.load(path)
    begun = session.journal.position
    known = [*session.jobs, *waiting_jobs(path)]
    unknown = [job for job in jobs or [] if job not in known]
    if unknown:
        raise no_such_job(session.id, unknown, known)
    by = f"autoexp cancel by {getpass.getuser()}"
    had_ended = {name for name, job in session.jobs.items() if job.is_over}
    names = jobs or [job for job in known if job not in had_ended]
    if live_holder(session) is not None:
        request = enqueue(path, CancelRequest(jobs=tuple(jobs or []), by=by))
        say(f"{session.id}: {len(names)} jobs to be cancelled ({whose_turn(session)})")
        over = _wait_until_over(session, names, request)
    else:
        over = _cancel_unwatched(path, tuple(jobs or []), by)
    _report_cancelled(path, names, begun)
    return 0 if over else 1


def _wait_until_over(session: "Session", names: list[str], request: Path) -> bool:
    """Wait for the monitor, and say what for; it goes on with it if this is interrupted."""
    from autoexp.operations.cancel import waits_for
    from autoexp.reports.terminal import say
    from autoexp.session.find import live_holder
    from autoexp.session.session import Session

    notify, deadline = _Notes(), time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        is_watched = live_holder(session) is not None
        session = Session.load(session.path, session.journal)
        if all(name in session.jobs and session.jobs[name].is_over for name in names):
            return True
        if not is_watched:
            say("the monitor has ended meanwhile: run the same command again", error=True)
            return False
        notify(waits_for(session, names, request))
        time.sleep(0.25)
    return False


class _Notes:
    """Says what is waited for: after a second, whenever it changes, and every quarter minute."""

    def __init__(self) -> None:
        self._began = self._printed_at = time.monotonic()
        self._printed = ""

    def __call__(self, waited_for: str) -> None:
        from autoexp.reports.terminal import say

        now = time.monotonic()
        waited_s = now - self._began
        if waited_s < _SHORTEST_WAIT_S or not waited_for:
            return
        if waited_for != self._printed or now - self._printed_at > _REMINDER_S:
            say(f"{waited_s:4.0f} s: waits for {waited_for}")
            self._printed, self._printed_at = waited_for, now


def _cancel_unwatched(path: Path, jobs: tuple[str, ...], by: str) -> bool:
    from autoexp.operations.cancel import cancel_directly
    from autoexp.reports.terminal import say

    outcome = cancel_directly(path, jobs, by, notify=_Notes())
    if outcome.problem is not None:
        say(f"not ended yet: {outcome.problem}; run the command again later", error=True)
    return outcome.problem is None


def _report_cancelled(path: Path, names: list[str], begun: "Position") -> None:
    """Print the outcome for each job, and the scheduler's answers since `begun`."""
    from autoexp.reports.terminal import say
    from autoexp.rules.describe import describe
    from autoexp.rules.events import CancelAnswered
    from autoexp.session.session import Session

    session = Session.load(path)
    for entry in session.journal.since(begun)[0]:
        if isinstance(entry.event, CancelAnswered) and entry.event.job in names:
            say(describe(entry.event))
    for name in names:
        job = session.jobs.get(name)
        if job is None:
            say(f"{name}: the monitor has not processed it yet")
            continue
        say(f"{name}: {job.reason if job.is_over else f'{job.state}, not ended yet'}")


def sessions_list(as_json: options.AsJson = False) -> int:
    """List all sessions, the newest last.

    An unreadable session is one line with the reason.

    \b
    Example:
      autoexp sessions list --json
    """
    from autoexp.reports.terminal import say, say_json
    from autoexp.session import find
    from autoexp.storage import permissions

    rows, problems = [], []
    for found in find.below(sessions_root()):
        row, problem = _row(found)
        rows.append(row)
        problems.append(problem)
    if as_json:
        say_json(rows)
        for problem in filter(None, problems):
            say(f"autoexp: {problem}", error=True)
    elif not rows:
        say(f"no sessions in {sessions_root()}; `autoexp run demo` makes one")
    for row, problem in [] if as_json else zip(rows, problems, strict=True):
        remark = problem or f"{row['jobs']} jobs"
        if not _is_own(row) and (whose := permissions.stranger(sessions_root() / row["session"])):
            remark += f" ({whose}'s)"
        say(f"{row['session']:<28} {row['created'][:16]:<16}  {row['state']:<10} {remark}")
    return (
        1
        if any(problem and _is_own(row) for row, problem in zip(rows, problems, strict=True))
        else 0
    )


def _is_own(row: dict[str, Any]) -> bool:
    """True if this user owns the session: a sessions root may be shared."""
    path: Path = sessions_root() / row["session"]
    return path.lstat().st_uid == os.geteuid()


def _row(found: "Found") -> tuple[dict[str, Any], str | None]:
    """The row of a session, and the reason why it cannot be read, if any."""
    from autoexp.index.overview import Overview
    from autoexp.reports.status import state_of
    from autoexp.storage import lease

    if found.problem is not None:
        return _unknown(found, "unreadable"), found.problem
    try:
        overview = Overview(found.path).read()
        holder = lease.look(found.path)
        watched = holder is not None and holder.alive
        is_over = overview.is_over
    except (AutoexpError, OSError) as error:
        return _unknown(found, "damaged"), str(error)
    rows = overview.jobs.values()
    return {
        "session": overview.session.session,
        "created": overview.session.created.isoformat(),
        "state": state_of(rows, is_over=is_over, watched=watched),
        "jobs": len(rows),
    }, None


def _unknown(found: "Found", state: str) -> dict[str, Any]:
    return {"session": found.path.name, "created": "?", "state": state, "jobs": 0}


def sessions_show(name: options.AnySession = None, as_json: options.AsJson = False) -> int:
    """Show what a session is about and where its files are.

    \b
    Example:
      autoexp sessions show demo-1a2b
    """
    from autoexp.reports.status import status_of
    from autoexp.reports.tables import status_view
    from autoexp.reports.terminal import console, say_json
    from autoexp.session.find import session_path
    from autoexp.session.session import Session

    session = Session.load(session_path(name))
    status = status_of(session)
    if as_json:
        say_json(
            {
                "session": session.id,
                "path": str(session.path),
                "created": session.meta.created.isoformat(),
                "state": status.state,
                "config": session.meta.config,
                "overrides": list(session.meta.overrides),
                "outputs": {job.spec.name: job.spec.output_dir for job in session.jobs.values()},
            }
        )
        return 0
    out = console()
    out.print(status_view(status))
    out.print(f"\nmade from  {session.meta.config} {' '.join(session.meta.overrides)}")
    out.print(f"directory  {session.path}", soft_wrap=True)
    for job in session.jobs.values():
        out.print(f"{job.spec.name}: output {job.spec.output_dir}", soft_wrap=True)
    return 0


def sessions_remove(
    name: options.Session,
    cancel_first: Annotated[bool, typer.Option("--cancel", help="Cancel its jobs first.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation.")] = False,
) -> int:
    """Delete a session's directory, output included.

    It says what will be deleted, and asks. It is refused while jobs of the session are alive.

    \b
    Examples:
      autoexp sessions remove demo-1a2b
      autoexp sessions remove demo-1a2b --cancel --yes
    """
    from autoexp.operations import adopt
    from autoexp.reports.terminal import say
    from autoexp.session import find, remove
    from autoexp.session.create import claim_of
    from autoexp.session.find import own_session_path, refuse_if_held
    from autoexp.session.meta import output_root
    from autoexp.session.session import Session
    from autoexp.storage import claims

    path = own_session_path(name)
    session = Session.load(path)
    refuse_if_held(session)
    if path.is_symlink():
        raise BadInput(f"{path}: a link to {path.resolve()}; remove that, and then the link")
    alive = [name for name, job in session.jobs.items() if job.open_attempts]
    if alive and not cancel_first:
        raise BadInput(
            f"{session.id}: {', '.join(alive)} may be alive; `autoexp sessions remove "
            f"{session.id} --cancel` cancels first"
        )
    if not yes and not _agrees_to_removal(session):
        say("nothing was removed")
        return 2
    if alive and not _cancel_unwatched(path, (), "autoexp sessions remove"):
        raise BadInput(f"{session.id}: jobs have not ended yet; nothing was removed, try again")
    _report_cancelled(path, alive, session.journal.position)
    # Before the session, while nobody else can take what is its own.
    claims.release(output_root(session.experiment, path), claim_of(session))
    adopt.forget(session)
    find.forget(path, session.meta.flow_run_ids)
    remove.remove(path)
    say(f"removed {path}")
    for place in _outside(session):
        _say_kept(place)
    return 0


def _agrees_to_removal(session: "Session") -> bool:
    """Ask on the terminal whether a session may be deleted; raises BadInput without one."""
    from autoexp.reports.terminal import ask
    from autoexp.session.remove import size_of

    size = size_of(session.path)
    inside = [
        len(job.checkpoints)
        for job in session.jobs.values()
        if Path(job.spec.save_dir).is_relative_to(session.path) and job.checkpoints
    ]
    checkpoints = f"{sum(inside)} checkpoints of {len(inside)} jobs, " if inside else ""
    question = f"{session.path}: {checkpoints}{size.files} files, {size}, will be deleted"
    if not sys.stdin.isatty():
        raise BadInput(f"{question}; `--yes` agrees to it")
    return ask(f"{question}. Go ahead? [y/N] ").strip().lower() in ("y", "yes")


def _outside(session: "Session") -> list[Path]:
    """Directories outside the session that its jobs wrote: outputs, and folders of adopted jobs."""
    from autoexp.session.meta import output_root

    places = [session.path, output_root(session.experiment, session.path)]
    for job in session.jobs.values():
        for place in (Path(job.spec.output_dir), Path(job.spec.save_dir)):
            if not any(place.is_relative_to(known) for known in places):
                places.append(place)
    return [place for place in places if not place.is_relative_to(session.path)]


def _say_kept(place: Path) -> None:
    """Print what is kept of a directory outside the session, if it exists."""
    from autoexp.reports.terminal import say
    from autoexp.storage import claims

    try:
        if not place.is_dir():
            return
        if (holder := claims.holder(place)) is not None:
            say(f"kept    {place}: {holder.title} writes there by now")
        elif claims.is_unused(place):
            say(f"left    {place}: empty but for marks of sessions")
        else:
            say(f"kept    {place}: what its jobs wrote there, outside of the session")
    except OSError as error:
        say(f"kept    {place}: outside of the session, and cannot be read ({error.strerror})")
