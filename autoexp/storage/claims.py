"""Claims of sessions on directories that several could use.

A claim is a file that is made exclusively and names a session. The last of `.autoexp-session`,
`.autoexp-session.2`, … counts. One whose session is gone is followed by another, and none is
ever removed but with its directory: of any number of sessions that take a directory at once one
gets it.
"""

import json
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from autoexp import payload
from autoexp.storage import atomic, processes

NAME = ".autoexp-session"
_LARGEST = 100_000
_PATIENCE_S = 10.0
_LONGEST_MAKING_S = 86400.0
"""Creating a session takes seconds; a checkpoint that has to be copied for it takes longer."""


class Claim(NamedTuple):
    """A session, created or being created, that has a directory."""

    session: str
    """Its path."""
    nonce: str
    draft: str = ""
    """Where it is being created, until it has its own path."""
    is_hidden: bool = False
    """True if it is another user's and unreadable."""

    @property
    def identity(self) -> tuple[str, str]:
        """What distinguishes a session from every other one."""
        return self.session, self.nonce

    @property
    def title(self) -> str:
        """Title for display."""
        if self.is_hidden:
            return f"another user's session (its mark {self.session} cannot be read)"
        return f"session {self.session}"

    def is_live(self) -> bool:
        """True if the session exists, or is being created; an invisible one counts as existing."""
        if self.is_hidden:
            return True
        try:
            content = json.loads(atomic.read(Path(self.session) / "session.json"))
            return not isinstance(content, dict) or content.get("nonce", "") == self.nonce
        except (FileNotFoundError, NotADirectoryError):
            return bool(self.draft) and Path(self.draft).is_dir() and is_being_made(self.draft)
        except (OSError, ValueError, RecursionError):
            return True


IsLive = Callable[[Claim], bool]


def draft_of(path: Path) -> Path:
    """The directory in which this process creates a session."""
    return path.with_name(f"{_drafts()}{os.getpid()}-{path.name}")


def session_of(draft: Path) -> str:
    """The id of the session that a draft of this host was to become."""
    return draft.name.removeprefix(_drafts()).partition("-")[2]


def dead_drafts(root: Path) -> list[Path]:
    """Drafts of processes that were killed while they created a session."""
    return [draft for draft in root.glob(".new-*") if not is_being_made(draft)]


def is_being_made(draft: str | Path) -> bool:
    """True if the process of a draft lives; of one of another host, if the draft is not old."""
    pid = Path(draft).name.removeprefix(_drafts()).partition("-")[0]
    if pid.isdigit():
        return processes.identity(int(pid)) is not None
    try:
        return time.time() - Path(draft).stat().st_mtime < _LONGEST_MAKING_S
    except OSError:
        return False


def _drafts() -> str:
    return f".new-{os.uname().nodename}-"


def holder(directory: Path, is_live: IsLive = Claim.is_live) -> Claim | None:
    """The session that has a directory, or a directory above it."""
    found = (standing(place, is_live) for place in (directory, *directory.parents))
    return next(filter(None, found), None)


def standing(directory: Path, is_live: IsLive = Claim.is_live) -> Claim | None:
    """The claim of the session that has this very directory."""
    found = _last(directory)[1]
    return found if found is not None and (found.is_hidden or is_live(found)) else None


def take(directory: Path, mine: Claim, is_live: IsLive = Claim.is_live) -> Claim | None:
    """Claim a directory for a session; returns the claim of another session that has it.

    ``is_live` says whether an earlier claim still counts: by default while its session exists.
    """
    while True:
        atomic.make_directory(directory)
        number, last = _last(directory)
        if last is not None and last.identity == mine.identity:
            return None
        if last is not None and (last.is_hidden or is_live(last)):
            return last
        try:
            _create(_file(directory, number + 1), json.dumps(mine._asdict()))
            atomic.sync_directory(directory)
        except FileExistsError:
            continue
        except FileNotFoundError:  # its session has just removed it
            if directory.is_dir():
                raise
            continue
        last = _last(directory)[1]
        if last is None or last.identity == mine.identity:
            return None


def is_unused(directory: Path) -> bool:
    """True if a directory holds nothing but claims."""
    return all(path.name.startswith(NAME) for path in directory.iterdir())


def release(directory: Path, mine: Claim) -> bool:
    """Remove a directory that holds nothing but claims, the last being `mine`; True if it did."""
    return clear(directory, lambda last: last is not None and last.identity == mine.identity)


def clear(directory: Path, is_over: Callable[[Claim | None], bool]) -> bool:
    """Remove a directory that holds nothing but claims if the last is over; True if removed.

    It is renamed first, in one step: whoever claims it meanwhile makes a new one.
    """
    aside = directory.with_name(f".{directory.name[:200]}.{secrets.token_hex(4)}")
    with suppress(OSError):
        if directory.is_symlink() or not is_unused(directory) or not is_over(_last(directory)[1]):
            return False
        directory.rename(aside)
        atomic.step()
        # Somebody may have claimed it, or written there, just before.
        if not is_unused(aside) or not is_over(_last(aside)[1]):
            aside.rename(directory)
            return False
        for path in aside.iterdir():
            path.unlink()
        aside.rmdir()
        atomic.sync_directory(directory.parent)
        return True
    return False


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
    """Read a claim; without hard links it is empty for a moment, and is waited for."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        try:
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
                text = file.read(_LARGEST)
            if text:
                content = json.loads(text)
                return Claim(
                    str(content["session"]), str(content["nonce"]), str(content.get("draft", ""))
                )
        except PermissionError:
            return Claim(str(path), "", is_hidden=True)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        time.sleep(0.1)
    return None


def _create(path: Path, text: str) -> None:
    """Make a file with its content; raises FileExistsError where there is one."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    atomic.write(draft, text)
    try:
        payload.create(draft, path)
        atomic.step()
    finally:
        draft.unlink()
