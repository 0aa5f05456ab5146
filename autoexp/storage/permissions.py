"""Permissions of a session's files: who may read them, and who else could have written them.

The mode of the session's directory says who may read: all files below it get it (see atomic).
"""

import os
import pwd
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from autoexp.errors import BadInput
from autoexp.storage import lease

OF_SESSION = {"owner": 0o700, "group": 0o750}
"""Mode of a session's directory, by `project.share`."""
_RECORDS = ("jobs", "actions", "config", "provenance", "metrics", "inbox")
_ATTEMPTS = "attempts"
_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_NAMED = 3


def owners(session: Path) -> set[int]:
    """User ids whose files are trusted in a session that this process holds: its own, and root.

    Where a file server maps users, the lease shows what our files are mapped to.
    """
    own = {0, os.geteuid()}
    with suppress(FileNotFoundError):
        own.add((session / lease.FILE).lstat().st_uid)
    return own


def user(number: int) -> str:
    """A user's name for display."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"uid {number}"


def stranger(session: Path) -> str | None:
    """Name of the user whose session it is, where that is not this one; None: it is ours."""
    owner = session.stat().st_uid
    if owner == os.geteuid():
        return None
    # A file server may map users: ours has what we make there under the same id.
    with suppress(OSError), tempfile.TemporaryFile(dir=session) as made:
        if os.fstat(made.fileno()).st_uid == owner:
            return None
    return user(owner)


def refuse_strangers(session: Path) -> None:
    """Raise BadInput for another user's session, in which nothing was changed."""
    if session.exists() and (whose := stranger(session)) is not None:
        raise BadInput(
            f"{session}: is {whose}'s session, and its commands would run as "
            f"{user(os.geteuid())}. Nothing was changed: {whose} alone can act on it"
        )


def refuse_others(session: Path) -> None:
    """Raise BadInput for records that another user has written: their commands would run as us.

    To be called by the lease's holder. Requests are judged by themselves.
    """
    own = owners(session)
    for path, status in _files(session):
        if status.st_uid not in own and path.parent.name != "inbox":
            raise BadInput(
                f"{path}: is a file of {user(status.st_uid)}'s, and its commands would run as "
                f"{user(os.geteuid())}. Nothing was changed: remove it if you do not know it, "
                f"or have {user(status.st_uid)} go on with the session"
            )


def writable_by_others(session: Path) -> str | None:
    """A warning that names files that are writable for others; None: there are none."""
    found = [
        str(path)
        for path, status in _files(session)
        if status.st_mode & _OTHERS and not stat.S_ISLNK(status.st_mode)
    ]
    if not found:
        return None
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return (
        f"others can write {', '.join(found[:_NAMED])}{more}, and so have commands run as you: "
        f"chmod -R go-w {session}"
    )


def _files(session: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Files of the session itself, without those of its jobs in their own directories.

    Of an attempt the directory alone, unless others can write in it: a session may have thousands.
    """
    yield session, session.stat()
    yield from _entries(session, folders=False)
    for name in _RECORDS:
        yield from _folder(session / name)
    for path, status in _folder(session / _ATTEMPTS):
        yield path, status
        if path.name != _ATTEMPTS and stat.S_ISDIR(status.st_mode) and status.st_mode & _OTHERS:
            yield from _entries(path)


def _folder(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    with suppress(FileNotFoundError):
        yield folder, folder.lstat()
        yield from _entries(folder)


def _entries(folder: Path, *, folders: bool = True) -> Iterator[tuple[Path, os.stat_result]]:
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                if folders or not entry.is_dir(follow_symlinks=False):
                    yield folder / entry.name, entry.stat(follow_symlinks=False)
