"""From what a user types to an experiment, or to a session on disk."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from autoexp import lease
from autoexp.compose import Composed
from autoexp.errors import BadInput, SessionHeld, SessionNotFound
from autoexp.lease import Holder
from autoexp.origins import compose_from, read_origin
from autoexp.session import Session, sessions_root
from flows.composing import compose, filling_in


def compose_words(words: list[str], origin: str | None = None) -> Composed:
    """Split the words into a configuration's name and overrides, and compose.

    `origin` is what stands behind `--from`, and takes the place of a configuration's name.
    """
    names = [word for word in words if "=" not in word and not word.startswith("~")]
    if len(names) > 1:
        raise BadInput(f"one configuration at a time, not {', '.join(names)}")
    overrides = [word for word in words if word not in names]
    if origin is not None:
        if names:
            raise BadInput(f"--from {origin} brings its own configuration: leave out {names[0]}")
        start = read_origin(origin)
        return compose_from(
            Session.load(session_path(start.session)), start, overrides, filling_in()
        )
    return compose(names[0] if names else None, overrides)


def session_paths() -> list[Path]:
    """All sessions, by creation."""
    return sorted(directories(sessions_root()), key=_created)


def directories(root: Path) -> Iterator[Path]:
    """Of all sessions; drafts and what is being removed have names with a dot."""
    for path in root.glob("*/session.json"):
        if path.parent.name[0] != ".":
            yield path.parent


def _created(path: Path) -> datetime:
    """When a session was made; of a damaged one, when its file was last written."""
    file = path / "session.json"
    try:
        return datetime.fromisoformat(json.loads(file.read_bytes())["created"])
    except (ValueError, TypeError, KeyError):
        return datetime.fromtimestamp(file.stat().st_mtime, UTC)


def session_path(name: str | None) -> Path:
    if name is None:
        paths = session_paths()
        if not paths:
            raise SessionNotFound(f"no sessions in {sessions_root()}; `autoexp run demo` makes one")
        return paths[-1]
    path = Path(name)
    # A path works as well as an id, so that any session on disk can be opened.
    return path.absolute() if (path / "session.json").exists() else sessions_root() / name


def live_holder(session: Session) -> Holder | None:
    holder = lease.look(session.path)
    return holder if holder is not None and holder.alive else None


def refuse_if_held(session: Session) -> None:
    holder = live_holder(session)
    if holder is not None:
        raise SessionHeld(
            f"{session.id}: held by the monitor with pid {holder.pid} on {holder.host}; "
            f"look at it with `autoexp status {session.id} --watch`"
        )
