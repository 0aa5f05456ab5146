"""Removing a session directory: gone in one step, and deleted after it.

Everything here goes by open directories and never follows a link. Of what lies in a sessions root
under a name that says so, only that is deleted which its owner has marked to be: whoever may write
in the root can rename anything to such a name, and put links there.
"""

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from autoexp.storage import atomic

_PREFIX = ".removed-"
MARK = stat.S_ISVTX
"""The bit of a directory's mode that says: to be deleted. Its owner alone can set it, without room.

A draft is made with it; who takes a session up takes it away.
"""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW

assert shutil.rmtree.avoids_symlink_attacks, "deleting by open directories is what Linux can do"


def remove(path: Path) -> None:
    """Delete a session; a kill leaves it whole, or out of everybody's sight.

    It needs no room, so that a full disk can be helped.
    """
    remove_leftovers(path.parent)
    doomed = f"{_PREFIX}{path.name}-{secrets.token_hex(4)}"
    with _opened(path.parent) as root, _opened(path.name, root) as session:
        atomic.set_mode(session, stat.S_IMODE(os.fstat(session).st_mode) | MARK)
        atomic.step()
        os.rename(path.name, doomed, src_dir_fd=root, dst_dir_fd=root)
        atomic.sync_directory(path.parent)
        atomic.step()
        _empty(session)
        with suppress(FileNotFoundError):  # somebody else was at the same
            os.rmdir(doomed, dir_fd=root)


def unmark(path: Path) -> None:
    """Have a session stay: it is whole, and somebody takes it up."""
    with atomic.closed_after(os.open(path, os.O_RDONLY | os.O_DIRECTORY)) as session:
        atomic.set_mode(session, stat.S_IMODE(os.fstat(session).st_mode) & ~MARK)


def remove_leftovers(root: Path) -> None:
    """Delete what removals have left that were killed; one that goes on is only helped."""
    for doomed in root.glob(f"{_PREFIX}*"):
        discard(doomed)


def discard(path: Path) -> None:
    """Delete a directory of ours that carries the mark, as far as it can be; else nothing."""
    with suppress(OSError), _opened(path.parent) as root, _opened(path.name, root) as doomed:
        status = os.fstat(doomed)
        if status.st_uid == os.geteuid() and status.st_mode & MARK:
            _empty(doomed)
            os.rmdir(path.name, dir_fd=root)


@contextmanager
def _opened(name: str | Path, within: int | None = None) -> Iterator[int]:
    flags = os.O_RDONLY | os.O_DIRECTORY if within is None else _DIRECTORY
    with atomic.closed_after(os.open(name, flags, dir_fd=within)) as descriptor:
        yield descriptor


def _empty(directory: int) -> None:
    """Delete all that is in an open directory; somebody else may be at the same."""
    with os.scandir(directory) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.name, dir_fd=directory)
                else:
                    os.unlink(entry.name, dir_fd=directory)
            atomic.step()
