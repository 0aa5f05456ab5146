"""From what a user types to an experiment, or to a session on disk."""

from pathlib import Path

from autoexp.config.compose import Composed
from autoexp.errors import BadInput, SessionHeld, SessionNotFound
from autoexp.flows.engine.compose import compose, filling_in
from autoexp.session import find
from autoexp.session.from_session import compose_from, read_origin
from autoexp.session.session import Session, sessions_root
from autoexp.storage import lease
from autoexp.storage.lease import Holder


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
    """All sessions that can be read, by creation."""
    return [found.path for found in find.below(sessions_root()) if found.problem is None]


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
