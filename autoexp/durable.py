"""Writes that survive a kill at any moment: a reader sees the old file or the new one, whole.

Every durable step passes through `step()`, where a test can have the process killed: with
AUTOEXP_TEST_KILL_AT=n in the environment the n-th step is the last thing that happens.
"""

import errno
import itertools
import json
import os
import signal
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOM = 65536
"""Bytes, for the records that are written at a start."""

_steps = itertools.count(1)
_kill_at = int(os.environ.get("AUTOEXP_TEST_KILL_AT", "0"))


def step() -> None:
    """Mark a point between two durable effects; a test may choose to die here."""
    if _kill_at and next(_steps) == _kill_at:
        os.kill(os.getpid(), signal.SIGKILL)


# A disk that is full or away, a limit that is reached: what fails so may work a moment later.
_PASSING = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ETIMEDOUT),
    *(errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOTCONN, errno.EHOSTDOWN),
    *(errno.ESHUTDOWN, errno.EREMOTEIO, errno.EINTR, errno.EBUSY),
}


def in_words(error: OSError) -> str:
    """What went wrong, where, and what to do about it, in one line."""
    said = error.strerror or str(error)
    where = f"{error.filename}: {said}" if error.filename else said
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}; free space there, then run the same again"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{where}; make it writable for you, then run the same again"
    return where


def is_passing(error: OSError) -> bool:
    """Whether to try again; a file that is missing or forbidden will be so tomorrow."""
    return error.errno in _PASSING


def probe(directory: Path, size: int = ROOM) -> None:
    """Raise what a write of `size` bytes would, where a disk is full, read-only or away."""
    with _naming(directory), tempfile.TemporaryFile(dir=directory) as file:
        file.write(bytes(size))
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Have errors name the path that is meant: a full disk names none, or a temporary file's."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def sync_directory(directory: Path) -> None:
    """Make names created, renamed or removed in `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(path: Path, data: str | bytes, *, mode: int = 0o644) -> None:
    """Replace `path` atomically: temporary file beside it, fsync, rename, fsync of the directory.

    Raises OSError when the disk is full or read-only; the old file then stands as it was.
    """
    raw = data.encode() if isinstance(data, str) else data
    step()
    with _naming(path):
        _replace(path, raw, mode)
        sync_directory(path.parent)
    step()


def _replace(path: Path, raw: bytes, mode: int) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(raw)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Replace `path` atomically by `value` as indented JSON."""
    write(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def append(path: Path, data: bytes) -> None:
    """Append `data` in one write and sync it; a kill leaves at most one torn last line."""
    step()
    with _naming(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            _append_all(descriptor, data)
        finally:
            os.close(descriptor)
    step()


def cut(path: Path, size: int) -> None:
    """Cut off what stands behind the first `size` bytes."""
    with _naming(path), path.open("r+b") as file:
        if os.fstat(file.fileno()).st_size > size:
            file.truncate(size)
            os.fsync(file.fileno())


def _append_all(descriptor: int, data: bytes) -> None:
    size = os.fstat(descriptor).st_size
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    except OSError:
        # A full disk took a part of it: what follows must not be glued to that.
        os.ftruncate(descriptor, size)
        raise


def read(path: Path) -> bytes:
    """The bytes of a regular file; raises OSError for anything else, and waits for no pipe."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)
