"""Finds sessions below their root: all of them, and the one of a flow run.

Below a shared root lie others' sessions, and files that are no sessions: none of that stops
anybody. The session that a flow run created or resumed is recorded in its user's own index:
`.flow-runs-<uid>/<flow run id>`, a link that is made in one step, before the session counts. So
a flow run that is run again creates or resumes that session, and never a second one.
"""

import json
import os
import re
import secrets
from collections.abc import Container, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from autoexp.errors import BadInput, SessionDamaged, SessionHeld, SessionNotFound
from autoexp.storage import atomic, lease, permissions
from autoexp.storage.lease import Holder
from autoexp.storage.places import sessions_root

if TYPE_CHECKING:
    from autoexp.session.session import Session

FILE = "session.json"
"""The record that makes a directory a session."""
MARK = "indexed"
"""A file in each session whose flow runs are in the index; other sessions have to be read."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Found(NamedTuple):
    """An entry of the sessions root."""

    path: Path
    created: datetime
    problem: str | None = None
    """Reason why it is not a readable session."""


def below(root: Path) -> list[Found]:
    """The sessions by creation, and unreadable entries with the reason; raises for the root alone.

    Drafts and what is being removed have names with a dot; a folder without `session.json` is
    none.
    """
    found = [_look(path) for path in _visible(root)]
    return sorted(filter(None, found), key=lambda one: one.created)


def _visible(root: Path) -> Iterator[Path]:
    with suppress(FileNotFoundError), os.scandir(root) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name[0] != ".":
                yield root / entry.name


def _look(path: Path) -> Found | None:
    file = path / FILE
    try:
        if not path.is_dir():
            kind = "a link to nowhere" if path.is_symlink() else "a file, not a directory"
            return Found(path, _changed(path), f"{path} is {kind}")
        created = datetime.fromisoformat(json.loads(atomic.read(file))["created"])
        return Found(path, created if created.tzinfo else created.replace(tzinfo=UTC))
    except FileNotFoundError:
        if file.is_symlink():
            return Found(path, _changed(file), f"{file} is a link to nowhere")
        return None
    except OSError as error:
        return Found(path, _changed(path), f"{file} cannot be read: {error.strerror}")
    except (ValueError, TypeError, KeyError, RecursionError):
        return Found(path, _changed(file), f"{file} does not parse")


def _changed(path: Path) -> datetime:
    with suppress(OSError):
        return datetime.fromtimestamp(path.lstat().st_mtime, UTC)
    return datetime.fromtimestamp(0, UTC)


# The session of a flow run


def session_of(flow_run_id: str, root: Path) -> Path | None:
    """The session that a flow run created or resumed before, if any; no other one is read.

    Sessions older than the index are read to find it, as far as they can be.
    """
    name = claimed(flow_run_id, root)
    if name is not None:
        return root / name if is_of(root / name, flow_run_id) else None
    for path in _visible(root):
        with suppress(OSError):
            if not (path / MARK).exists() and _names(path, flow_run_id):
                return path
    return None


def claimed(flow_run_id: str, root: Path) -> str | None:
    """The name of the session that a flow run creates or has; None: not yet decided."""
    try:
        name = _entry(flow_run_id, root).readlink().name
    except OSError:
        return None
    return name if _NAME.fullmatch(name) else None


def claim(flow_run_id: str, root: Path, name: str) -> bool:
    """Claim a session name for a flow run, once and for all; True if it got this one.

    To be called before the session exists; a kill in between leaves only the name, which
    whoever runs the flow run again takes.
    """
    entry = _entry(flow_run_id, root)
    _make_index(entry.parent)
    with suppress(FileExistsError):
        entry.symlink_to(Path("..", name))
    atomic.sync_directory(entry.parent)
    atomic.step()
    return claimed(flow_run_id, root) == name


def take_up(path: Path, flow_run_ids: Iterable[str]) -> None:
    """Record flow runs of an existing session in the index. For the lease's holder."""
    # A session may have been resumed a hundred times: existing entries of the index stay.
    new = [run for run in flow_run_ids if claimed(run, path.parent) != path.name]
    if new:
        index = _entry(new[0], path.parent).parent
        _make_index(index)
        for flow_run_id in new:
            draft = index / f".{secrets.token_hex(8)}"
            draft.symlink_to(Path("..", path.name))
            draft.rename(_entry(flow_run_id, path.parent))
        atomic.sync_directory(index)
    if not (path / MARK).exists():
        atomic.write(path / MARK, "")


def forget(path: Path, flow_run_ids: Iterable[str]) -> None:
    """Remove flow runs from the index: their session is about to be removed."""
    for flow_run_id in flow_run_ids:
        with suppress(OSError):
            if claimed(flow_run_id, path.parent) == path.name:
                _entry(flow_run_id, path.parent).unlink()


def is_of(path: Path, flow_run_id: str) -> bool:
    """True if an existing session names a flow run as its own."""
    try:
        return _names(path, flow_run_id)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # whoever opens it says what is wrong; a second one would double its jobs


def _entry(flow_run_id: str, root: Path) -> Path:
    return root / f".flow-runs-{os.geteuid()}" / re.sub(r"[^A-Za-z0-9-]", "-", flow_run_id)


def _make_index(index: Path) -> None:
    if not index.is_dir():
        with suppress(FileExistsError):
            atomic.make_own_directory(index, 0o700)
        atomic.sync_directory(index.parent)
    atomic.step()


def _names(path: Path, flow_run_id: str) -> bool:
    return json.dumps(flow_run_id).encode() in atomic.read(path / FILE)


def session_paths() -> list[Path]:
    """All readable sessions, by creation."""
    return [found.path for found in below(sessions_root()) if found.problem is None]


def session_path(name: str | None) -> Path:
    """The directory of a session; without a name of the newest, of one's own if there is any."""
    if name is None:
        paths = session_paths()
        if not paths:
            raise SessionNotFound(f"no sessions in {sessions_root()}; `autoexp run demo` makes one")
        own = [path for path in paths if path.stat().st_uid == os.geteuid()]
        return (own or paths)[-1]
    path = Path(name)
    # A path works as well as an id, so that any session on disk can be opened.
    return path.absolute() if session_exists(path) else sessions_root() / name


def own_session_path(name: str | None) -> Path:
    """As `session_path`, of a session that is to be changed; raises BadInput for another user's."""
    path = session_path(name)
    permissions.refuse_strangers(path)
    return path


def session_exists(path: Path) -> bool:
    """True if a session stands at a path. Raises OSError where that cannot be seen."""
    return (path / FILE).exists()


def must_exist(path: Path) -> None:
    """Raise SessionNotFound unless a session lies there."""
    if not session_exists(path):
        raise SessionNotFound(
            f"{path.name}: no such session in {path.parent}; `autoexp sessions list` shows all"
        )


def refuse_missing(path: Path, listed: Iterable[str], found: Container[str]) -> None:
    """Raise SessionDamaged for jobs that a session lists, and of which there is no file."""
    missing = {name for name in listed if name not in found}
    if missing:
        raise SessionDamaged(
            f"{path / 'jobs'}: no file for {', '.join(sorted(missing))}. Nothing was changed: "
            "put it back from a backup, then resume the session"
        )


def no_such_job(session: str, names: Iterable[str], known: Iterable[str]) -> BadInput:
    """The error for unknown names of jobs."""
    return BadInput(f"{', '.join(names)}: no such job; {session} has: {', '.join(known)}")


def live_holder(session: "Session") -> Holder | None:
    holder = lease.look(session.path)
    return holder if holder is not None and holder.alive else None


def whose_turn(session: "Session") -> str:
    """Who processes a request to a session: its monitor, or the one that a user has to start."""
    holder = live_holder(session)
    if holder is None:
        return no_monitor(session.id)
    return f"asked the monitor, pid {holder.pid} on {holder.host}"


def no_monitor(session: str) -> str:
    """The words for a session that nobody watches, with what to do."""
    return f"no monitor is running: autoexp resume {session}"


def refuse_if_held(session: "Session") -> None:
    holder = live_holder(session)
    if holder is not None:
        raise SessionHeld(lease.held_by(session.id, holder))
