"""Removes a session directory: renamed away in one step, then deleted.

Everything here works on open directories and never follows a link. Leftovers in a sessions root are
deleted only if their owner has marked them: anybody who may write in the root can rename anything
to the name of a leftover, and put links there.
"""

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from autoexp.rules.durations import in_bytes
from autoexp.storage import atomic

_PREFIX = ".removed-"
MARK = stat.S_ISVTX
"""The bit of a directory's mode that says: to be deleted. Its owner alone can set it, without room.

A draft is made with it; resuming a session removes it.
"""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW

assert shutil.rmtree.avoids_symlink_attacks, "deleting by open directories is what Linux can do"


class Size(NamedTuple):
    """What a directory holds."""

    files: int
    bytes: int

    def __str__(self) -> str:
        return in_bytes(self.bytes)


def size_of(path: Path) -> Size:
    """Files below a directory and what they take; a file of several names counts once."""
    sizes: dict[tuple[int, int], int] = {}
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                found = Path(folder, name).lstat()
                sizes[found.st_dev, found.st_ino] = found.st_size
    return Size(len(sizes), sum(sizes.values()))


def remove(path: Path) -> None:
    """Delete a session; a kill leaves it whole, or under a hidden name.

    It needs no space, so that it works on a full disk.
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
    """Clear the mark: the session is whole, and is being resumed."""
    with atomic.closed_after(os.open(path, os.O_RDONLY | os.O_DIRECTORY)) as session:
        atomic.set_mode(session, stat.S_IMODE(os.fstat(session).st_mode) & ~MARK)


def remove_leftovers(root: Path) -> None:
    """Delete the rest of killed removals; a concurrent removal is only helped."""
    for doomed in root.glob(f"{_PREFIX}*"):
        discard(doomed)


def discard(path: Path) -> None:
    """Delete an own directory that carries the mark, as far as possible; else nothing."""
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
    """Delete the content of an open directory; another process may do the same."""
    with os.scandir(directory) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.name, dir_fd=directory)
                else:
                    os.unlink(entry.name, dir_fd=directory)
            atomic.step()
