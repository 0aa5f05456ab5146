"""Removes a file or a folder part by part, and measures one; no link is followed.

Each call does a bounded number of entries, so that whoever removes ten thousand files can stop
between two calls, and a kill loses nothing: the next call goes on with what is left.
"""

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from autoexp.storage import atomic

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class Part(NamedTuple):
    """What one call has removed."""

    files: int = 0
    bytes: int = 0
    """Of files that had no other name: this space is free."""
    is_done: bool = True
    """False: something is left for the next call."""


def remove_part(path: Path, most: int) -> Part:
    """Remove up to `most` entries of a file or a folder; nothing there is all done."""
    removed = _Removed(most)
    try:
        with atomic.closed_after(os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)) as parent:
            is_done = removed.take(path.name, parent)
    except FileNotFoundError:
        is_done = True
    return Part(removed.files, removed.bytes, is_done)


class _Removed:
    """Counts what is removed, up to a bound."""

    def __init__(self, most: int) -> None:
        self.files = self.bytes = 0
        self._left = most

    def take(self, name: str, within: int) -> bool:
        """Remove an entry of an open directory; False where the bound was reached before."""
        if self._left <= 0:
            return False
        with suppress(FileNotFoundError):  # somebody else was at the same
            found = os.stat(name, dir_fd=within, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                return self._take_folder(name, within)
            atomic.step()
            os.unlink(name, dir_fd=within)
            self.files += 1
            self.bytes += found.st_size if found.st_nlink == 1 else 0
            self._left -= 1
        return True

    def _take_folder(self, name: str, within: int) -> bool:
        with atomic.closed_after(os.open(name, _DIRECTORY, dir_fd=within)) as folder:
            for entry in os.listdir(folder):  # noqa: PTH208 - of an open directory
                if not self.take(entry, folder):
                    return False
        if self._left <= 0:
            return False
        atomic.step()
        os.rmdir(name, dir_fd=within)
        self._left -= 1
        return True


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder; 0 where nothing is."""
    with suppress(FileNotFoundError):
        found = os.stat(path, follow_symlinks=False)  # noqa: PTH116
        if not stat.S_ISDIR(found.st_mode):
            return found.st_size
        with os.scandir(path) as entries:
            return sum(size_of(Path(entry.path)) for entry in entries)
    return 0
