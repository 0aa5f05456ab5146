"""Writes that survive a kill at any moment: a reader sees the old file or the new one, whole.

Whatever is made here is a session's, unless `by_umask` says that it is the user's own: readable for
whom the directory above it is, and writable for nobody but its owner, under any umask. So what the
session's own directory says holds for all that is in it.

Every durable step passes through `step()`, in the place of which a test puts the process's end.
"""

import errno
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from autoexp import payload

ROOM = 65536
"""Bytes needed for the records that are written at a start."""
LONGEST_NAME = 255 - len("..xxxxxxxx.tmp")
"""Bytes of the name of a file that `write` can replace: its temporary file has a longer one."""


def step() -> None:
    """Mark a point between two durable effects: whatever follows may never happen."""


# Transient errors, which a retry a moment or a day later may not meet, by their cause.
_PASSING = {
    # Full, or over a quota: until space is freed.
    *(errno.ENOSPC, errno.EDQUOT),
    # A server or a device that hiccups, or a mount that went read-only until it is mended.
    *(errno.EIO, errno.EREMOTEIO, errno.EROFS, errno.ETIMEDOUT, errno.EBUSY),
    # A server that was restarted, or a client that it put out: what was known is looked up anew.
    *(errno.ESTALE, errno.ENOTCONN, errno.ESHUTDOWN, errno.ECONNRESET, errno.ECONNREFUSED),
    *(errno.EPIPE, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH),
    # A limit on what is open at once, or on memory; a call that a signal cut short.
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR),
    # The lock server is away, or its table is full.
    errno.ENOLCK,
    # A Kerberos ticket that has run out: whoever logs in renews it.
    *(errno.EKEYEXPIRED, errno.ENOKEY),
}
# A filesystem that cannot sync a directory says one of these; it orders names in its own way.
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES)


def in_words(error: OSError) -> str:
    """Describe an error in one line: what went wrong, where, and what to do."""
    reason = error.strerror or str(error)
    where = f"{error.filename}: {reason}" if error.filename else reason
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}; free space there, then run the same command again"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{where}; make it writable for you, then run the same command again"
    return where


def is_passing(error: OSError) -> bool:
    """True if a retry makes sense: the very same call may work later.

    Errors not known to be transient are reported at once. Names that are too long (ENAMETOOLONG),
    that run in circles (ELOOP), are of the wrong kind (ENOTDIR, EISDIR, EEXIST) or not allowed
    (EINVAL, EILSEQ) are so tomorrow. EACCES and EPERM last until somebody changes a mode, ENOENT
    until somebody puts a file back, EFBIG and EMLINK until another file is written.
    """
    return error.errno in _PASSING


def probe(directory: Path, size: int = ROOM) -> None:
    """Raise the error of a write of `size` bytes, where a disk is full, read-only or away."""
    with _naming(directory), tempfile.TemporaryFile(dir=directory) as file:
        file.write(bytes(size))
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Make errors name the right path: on a full disk they name none, or a temporary file's."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def sync_directory(directory: Path) -> None:
    """Make names created, renamed or removed in `directory` survive a power cut.

    Skipped where the filesystem cannot: its own guarantee remains.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


def make_directory(path: Path, *, by_umask: bool = False) -> None:
    """Make a directory, and those above it, unless it is there; each is synced in its parent."""
    if path.is_dir():
        return
    make_directory(path.parent, by_umask=by_umask)
    mode = 0o777 if by_umask else 0o700 | path.parent.stat().st_mode & 0o055
    try:
        make_own_directory(path, mode, by_umask=by_umask)
    except FileExistsError:
        if not path.is_dir():
            raise
    sync_directory(path.parent)


def make_own_directory(path: Path, mode: int, *, by_umask: bool = False) -> None:
    """Make one directory of exactly this mode; raises FileExistsError where the name exists."""
    path.mkdir(mode)
    if not by_umask:
        with closed_after(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)) as made:
            set_mode(made, mode)


@contextmanager
def closed_after(descriptor: int) -> Iterator[int]:
    """Close an open descriptor at the end of the context."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def set_mode(directory: int, mode: int) -> None:
    """Set the mode of an open directory; the group of its files stays as it is."""
    now = stat.S_IMODE(os.fstat(directory).st_mode)
    wanted = mode | now & stat.S_ISGID
    if now != wanted:
        with suppress(OSError):  # a filesystem without modes, or with its own
            os.fchmod(directory, wanted)


def write(
    path: Path, data: str | bytes, *, executable: bool = False, by_umask: bool = False
) -> None:
    """Replace `path` atomically: temporary file beside it, fsync, rename, fsync of the directory.

    Raises OSError when the disk is full or read-only; the old file then stands as it was.
    """
    raw = data.encode() if isinstance(data, str) else data
    step()
    with _naming(path):
        # A temporary name for a name of 255 bytes has to be valid too.
        start = path.name.encode()[:100].decode(errors="ignore")
        temporary = path.with_name(f".{start}.{secrets.token_hex(6)}.tmp")
        flags = os.O_WRONLY | os.O_EXCL
        if by_umask:
            descriptor = os.open(temporary, flags | os.O_CREAT, 0o777 if executable else 0o666)
        else:
            descriptor = payload.open_own(temporary, flags, executable=executable)
        _replace(path, raw, temporary, descriptor)
        sync_directory(path.parent)
    step()


def _replace(path: Path, raw: bytes, temporary: Path, descriptor: int) -> None:
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Replace `path` atomically by `value` as indented JSON."""
    write(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


class OtherSize(Exception):
    """A file with a single writer does not have the length that the writer left: `found` bytes."""

    def __init__(self, found: int) -> None:
        super().__init__(found)
        self.found = found


def append(path: Path, data: bytes, *, behind: int | None = None, by_umask: bool = False) -> None:
    """Append `data` in one write and sync it; a kill leaves at most one torn last line.

    Raises OtherSize, and writes nothing, unless the file has `behind` bytes.
    """
    step()
    with _naming(path):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
            is_new = False
        except FileNotFoundError:
            if behind:
                raise  # a new one would not have what stood in the old one
            flags = os.O_WRONLY | os.O_APPEND
            descriptor = (
                os.open(path, flags | os.O_CREAT, 0o666)
                if by_umask
                else payload.open_own(path, flags)
            )
            is_new = True
        try:
            size = os.fstat(descriptor).st_size
            if behind is not None and size != behind:
                raise OtherSize(size)
            _append_all(descriptor, data, size)
        finally:
            os.close(descriptor)
        if is_new:
            sync_directory(path.parent)
    step()


def cut(path: Path, size: int) -> None:
    """Cut a file off after the first `size` bytes."""
    with _naming(path), path.open("r+b") as file:
        if os.fstat(file.fileno()).st_size > size:
            file.truncate(size)
            os.fsync(file.fileno())


def _append_all(descriptor: int, data: bytes, size: int) -> None:
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    except OSError:
        # A full disk took a part of it: later data must not be appended to that.
        os.ftruncate(descriptor, size)
        raise


def append_once(path: Path, line: str, *, by_umask: bool = True) -> str:
    """Append a line to a user's file, unless it is there already; returns which of the two."""
    raw = line.replace("\n", " ").encode()
    make_directory(path.parent, by_umask=by_umask)
    content = path.read_bytes() if path.exists() else b""
    if raw in content.split(b"\n"):
        return "is there already"
    # A line without an end is not continued.
    start = b"\n" if content and not content.endswith(b"\n") else b""
    append(path, start + raw + b"\n", by_umask=by_umask)
    return "written"


class WrongFile(OSError):
    """The path is not a regular file, or too large for its purpose."""


LARGEST = 200 * 10**6
"""Most bytes of a session's record: a tenth of that is ten thousand jobs."""


def read(path: Path, most: int = LARGEST) -> bytes:
    """Read a regular file; never waits, as on a pipe, and reads `most` bytes at most.

    Raises WrongFile for anything else, of which nothing is read.
    """
    with open_to_read(path) as file:
        return read_opened(file, path, most)


def read_opened(file: BinaryIO, path: Path, most: int = LARGEST) -> bytes:
    """Read a file that `open_to_read` has opened: `read` for those that look at it first."""
    # A sparse file can have any size, and Python allocates all that is requested.
    size = os.fstat(file.fileno()).st_size
    raw = b"" if size > most else file.read(size + 1)
    if len(raw) > size:  # it grows meanwhile
        raw += file.read(max(0, most + 1 - len(raw)))
    if max(size, len(raw)) > most:
        raise WrongFile(errno.EFBIG, f"has more than {most} bytes", str(path))
    return raw


def open_to_read(path: Path, *, follow: bool = True) -> BinaryIO:
    """Open a regular file that another user may have put there; raises WrongFile for anything else.

    Without `follow` a link is something else, too: it may lead to any file that we can read.
    """
    try:
        # Otherwise opening a FIFO would wait for a writer.
        flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise WrongFile(errno.EINVAL, "not a regular file", str(path)) from error
        if error.errno == errno.ELOOP and not follow and path.is_symlink():
            raise WrongFile(errno.ELOOP, "a link", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise WrongFile(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")
