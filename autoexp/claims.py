"""Which session a directory belongs to, where several could ask for the same one.

A claim is a file that is made exclusively and names a session. The last of `.autoexp-session`,
`.autoexp-session.2`, … counts. One whose session is gone is followed by another, and none is
ever removed: of any number of sessions that take a directory at once one gets it.
"""

import json
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from autoexp import durable, payload, processes

NAME = ".autoexp-session"
_LARGEST = 100_000
_PATIENCE_S = 10.0


class Claim(NamedTuple):
    """A session, made or in the making, that has a directory."""

    session: str
    """Its path."""
    nonce: str
    draft: str = ""
    """Where it is made, until it has its own path."""

    @property
    def is_live(self) -> bool:
        """Whether the session is there, or is being made; what cannot be seen is there."""
        try:
            content = json.loads((Path(self.session) / "session.json").read_bytes())
            return not isinstance(content, dict) or content.get("nonce") == self.nonce
        except (FileNotFoundError, NotADirectoryError):
            return bool(self.draft) and Path(self.draft).is_dir() and is_being_made(self.draft)
        except (OSError, ValueError):
            return True


def draft_of(path: Path) -> Path:
    """The directory in which this process makes a session."""
    return path.with_name(f"{_drafts()}{os.getpid()}-{path.name}")


def dead_drafts(root: Path) -> list[Path]:
    """What processes of this host have left that were killed while they made a session."""
    return [draft for draft in root.glob(f"{_drafts()}*") if not is_being_made(draft)]


def is_being_made(draft: str | Path) -> bool:
    """Whether the process of a draft lives; of another host nobody can tell."""
    pid = Path(draft).name.removeprefix(_drafts()).partition("-")[0]
    return not pid.isdigit() or processes.identity(int(pid)) is not None


def _drafts() -> str:
    return f".new-{os.uname().nodename}-"


def holder(directory: Path) -> Claim | None:
    """The session that has a directory, or one that it lies in."""
    for place in (directory, *directory.parents):
        found = _last(place)[1]
        if found is not None and found.is_live:
            return found
    return None


def take(directory: Path, mine: Claim) -> Claim | None:
    """Take a directory for a session; returns the claim of another one that has it."""
    durable.make_directory(directory)
    while True:
        number, last = _last(directory)
        if last is not None and last.is_live:
            return None if last[:2] == mine[:2] else last
        with suppress(FileExistsError):
            _create(_file(directory, number + 1), json.dumps(mine._asdict()))
            durable.sync_directory(directory)
            return None


def _file(directory: Path, number: int) -> Path:
    return directory / (NAME if number == 1 else f"{NAME}.{number}")


def _last(directory: Path) -> tuple[int, Claim | None]:
    """Number and content of the claim that counts; 0 where there is none."""
    number = 0
    with suppress(OSError):
        while os.path.lexists(_file(directory, number + 1)):
            number += 1
    return number, _read(_file(directory, number)) if number else None


def _read(path: Path) -> Claim | None:
    """A claim; without hard links it is empty for a moment, and is waited for."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        try:
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
                text = file.read(_LARGEST)
            if text:
                said = json.loads(text)
                return Claim(str(said["session"]), str(said["nonce"]), str(said.get("draft", "")))
        except PermissionError:
            return Claim(f"another user's ({path} cannot be read)", "")
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        time.sleep(0.1)
    return None


def _create(path: Path, text: str) -> None:
    """Make a file with its content; raises FileExistsError where there is one."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    durable.write(draft, text)
    try:
        payload.create(draft, path)
    finally:
        draft.unlink()
