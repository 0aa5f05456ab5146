"""Resolves the file of a `write_file` action: values from a log cannot leave its directory.

A path is a template. Its leading parts without a captured value are the rule's own text and name
the directory; what stands behind them stays below it, links included.
"""

from collections.abc import Mapping
from pathlib import Path

from autoexp.errors import SessionError
from autoexp.rules import event_values as known
from autoexp.rules.actions import WriteFile
from autoexp.session.action_records import ActionRecord
from autoexp.storage import lease
from autoexp.templates import divided, fill

_LONGEST_PART = 255
"""Most bytes of a file name."""
_LONGEST_PATH = 4096  # Linux's PATH_MAX, with the NUL behind it
_RECORDS = {
    *("session.json", "events.jsonl", "blame.json", "jobs", "actions", "attempts", "inbox"),
    *("metrics", "config", "provenance", lease.FILE, lease.LOCK),
}
"""Names that autoexp itself uses in a session's directory, besides names that begin with a dot."""


def write_target(session: Path, action: ActionRecord, values: Mapping[str, str]) -> Path:
    """The file that a `write_file` action appends to; raises SessionError for one that it may not.

    `session` is the session's directory. A rule may name any directory itself; what an event brings
    may only choose a file below it.
    """
    assert isinstance(action.action, WriteFile)
    template = action.action.path
    both = divided(template, known.captured(action.event, values))
    if both is None:
        whole = session / fill(template, values)
        directory, relative = whole.parent, whole.name
    else:
        directory, relative = session / fill(both[0], values), fill(both[1], values)
    found = path_below(directory, relative)
    _refuse_record(session.resolve(), found)
    return found


def path_below(directory: Path, relative: str) -> Path:
    """The path of a file below a directory, all links followed.

    Raises SessionError for a path that leaves the directory, or that no file can have.
    """
    if not relative.isprintable():
        raise SessionError(f"{relative!r}: not a valid file name: it cannot be printed")
    if any(len(part.encode()) > _LONGEST_PART for part in relative.split("/")):
        raise SessionError(f"{relative[:80]}…: a name in it is longer than {_LONGEST_PART} bytes")
    base = directory.resolve()
    path = (base / relative).resolve()
    if relative.startswith("/") or not path.is_relative_to(base) or path == base:
        raise SessionError(f"{relative}: leads out of {directory}; nothing was written")
    if len(str(path).encode()) >= _LONGEST_PATH:
        raise SessionError(f"{relative[:80]}…: no path is longer than {_LONGEST_PATH - 1} bytes")
    if path.exists() and not path.is_file():
        raise SessionError(f"{path}: is not a writable file")
    return path


def _refuse_record(session: Path, path: Path) -> None:
    """Refuse files of the session: only its monitor writes them."""
    if not path.is_relative_to(session):
        return
    first = path.relative_to(session).parts[0]
    if first in _RECORDS or first.startswith("."):
        raise SessionError(f"{path}: is a record of the session, which rules cannot write")
