"""File locks: held by whoever has the file open, also by a process that inherited it."""

import errno
import fcntl
import os
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autoexp import payload

# What a filesystem without them says: Lustre mounted without `flock`, some FUSE and NFS mounts.
_ABSENT = (errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, errno.ENOLCK)
_PAUSE_S = 0.05


class Busy(Exception):
    """Another process held the lock during the whole wait."""


def try_lock(descriptor: int) -> bool:
    """Take the lock of an open file unless another process has it; True if taken.

    It lasts until the last process closes the descriptor that was opened once: a child that
    inherited it holds it on. Where the filesystem has no flock it is a lock on a range of bytes
    of the open file, which lasts as long. Raises OSError where there is neither.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        return _lock_bytes(descriptor)
    return True


WITHOUT_LOCKS = (
    "files cannot be locked here, and without that two monitors could submit the same job "
    "(Lustre has locks when it is mounted with `flock`)"
)


def _lock_bytes(descriptor: int) -> bool:
    """Lock the open file, not the process as POSIX locks do: those no child inherits."""
    order = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, order)
    except (BlockingIOError, PermissionError):  # Linux says EAGAIN, POSIX allows EACCES
        return False
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        raise OSError(error.errno, WITHOUT_LOCKS, str(path)) from error
    return True


def open_lock(path: Path) -> int:
    """Open a lock file, made where there is none; closing it releases the lock."""
    return payload.open_own(path, os.O_RDWR)


@contextmanager
def exclusively(path: Path, patience_s: float) -> Iterator[None]:
    """Hold the lock of a file; raises Busy after `patience_s` if another process has it."""
    descriptor = open_lock(path)
    deadline = time.monotonic() + patience_s
    try:
        while not try_lock(descriptor):
            if time.monotonic() > deadline:
                raise Busy(path)
            time.sleep(_PAUSE_S)
        yield
    finally:
        os.close(descriptor)


def probe(directory: Path) -> None:
    """Raise OSError where files of a directory cannot be locked."""
    with tempfile.TemporaryFile(dir=directory) as file:
        try_lock(file.fileno())
