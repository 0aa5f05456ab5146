"""Pins a checkpoint: a second one with the same contents, which nobody else can change.

The pinned files are recorded beside it, so that a change to either is noticed and named. Links in a
checkpoint are followed: a relative one would lead elsewhere from the new place.
"""

import fcntl
import json
import os
import shutil
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from autoexp.backends.protocol import PinChanges
from autoexp.errors import SessionError
from autoexp.storage import atomic

_MANIFEST = ".autoexp-pin.json"
_HELD = ".autoexp-held"
_FICLONE = 0x40049409
_ENDS = 65536


class Changed(SessionError):
    """A checkpoint lost or changed files while it was pinned."""


class Mark(NamedTuple):
    """A fingerprint of a file's contents, without reading all of them."""

    size: int
    mtime_ns: int
    inode: int
    ends: int
    """Checksum of its first and last bytes, for a file that was only touched."""

    @classmethod
    def of(cls, path: Path) -> "Mark":
        stat = path.stat()
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ino, _ends(path, stat.st_size))

    def differs(self, path: Path) -> bool:
        """True if a file has other contents; also for a missing file."""
        try:
            stat = path.stat()
            if stat.st_size != self.size:
                return True
            return stat.st_mtime_ns != self.mtime_ns and _ends(path, self.size) != self.ends
        except FileNotFoundError:
            return False

    def is_same_file(self, path: Path) -> bool:
        """True if the path still names the same file, and not a replacement."""
        try:
            return path.stat().st_ino == self.inode
        except FileNotFoundError:
            return False


class Pin(NamedTuple):
    """A checkpoint at the time when it was pinned."""

    path: str
    files: Mapping[str, Mark]
    """By their names below it; a checkpoint that is one file is `.`."""

    @classmethod
    def of(cls, path: Path, source: Path) -> "Pin":
        """Make the pin of `path`, read from `source`, which has the same files."""
        return cls(str(path), {name: Mark.of(source / name) for name in contents(source)})

    def write(self, root: Path) -> None:
        """Write it in the directory where the checkpoint is pinned."""
        atomic.write_json(root / _MANIFEST, {"path": self.path, "files": self.files})

    @classmethod
    def read(cls, root: Path) -> "Pin | None":
        """The checkpoint pinned here; None where there is none, or it is unknown."""
        try:
            content = json.loads(atomic.read(root / _MANIFEST))
            files = {str(name): Mark(*map(int, mark)) for name, mark in content["files"].items()}
            return cls(str(content["path"]), files)
        except (
            FileNotFoundError,
            atomic.WrongFile,
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
        ):
            return None

    def is_whole(self, checkpoint: Path) -> bool:
        """True if a checkpoint has all files that were pinned, with unchanged contents."""
        return all(
            (checkpoint / name).exists() and not mark.differs(checkpoint / name)
            for name, mark in self.files.items()
        )

    def changes(self, root: Path) -> PinChanges:
        """Files with other contents now, here or where they were pinned from."""
        origin = Path(self.path)
        seed = root / origin.name
        return PinChanges(
            tuple(name for name, mark in self.files.items() if mark.differs(seed / name)),
            tuple(
                name
                for name, mark in self.files.items()
                if mark.is_same_file(origin / name) and mark.differs(origin / name)
            ),
            self.path,
        )


@contextmanager
def held(checkpoint: Path, root: Path) -> Iterator[Path]:
    """The checkpoint under our own names in `root`, so that deleting it does not end a copy.

    Nobody writes there. Where the filesystem has no hard links, the checkpoint itself.
    """
    own = root / _HELD
    remove(own)
    try:
        _tree(checkpoint, own, lambda one, other: os.link(os.path.realpath(one), other))
        source = own
    except FileNotFoundError:
        remove(own)
        raise
    except OSError:
        remove(own)
        source = checkpoint
    try:
        yield source
    finally:
        remove(own)


def contents(checkpoint: Path) -> dict[str, int]:
    """Sizes of a checkpoint's files, by their names below it; one that is a file itself is `.`.

    Raises Changed where a file vanishes meanwhile, and SessionError for what cannot be pinned.
    """
    try:
        found = _sizes(checkpoint, ())
        return {str(file.relative_to(checkpoint)): size for file, size in found}
    except FileNotFoundError as error:
        raise Changed(f"{error.filename} is missing") from error


def compare(before: Mapping[str, int], checkpoint: Path) -> None:
    """Raise Changed unless a checkpoint has the files of `before`, in their sizes."""
    now = contents(checkpoint)
    names = {name for name, _ in before.items() ^ now.items()}
    if names:
        raise Changed(f"{', '.join(sorted(names)[:3])} changed")


def _sizes(path: Path, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[Path, int]]:
    try:
        status = path.stat()
    except OSError as error:
        if path.is_symlink():
            raise SessionError(
                f"{path}: a link to {path.readlink()}, which cannot be followed"
            ) from error
        raise
    own = (status.st_dev, status.st_ino)
    if stat.S_ISREG(status.st_mode):
        yield path, status.st_size
    elif not stat.S_ISDIR(status.st_mode):
        raise SessionError(f"{path}: neither a file nor a folder, which cannot be pinned")
    elif own in above:
        raise SessionError(f"{path}: a link to a folder that it lies in, which cannot be pinned")
    else:
        for entry in sorted(path.iterdir()):
            yield from _sizes(entry, (*above, own))


def copy(source: Path, target: Path, *, link: bool) -> int:
    """Make `target` from a checkpoint, a file or a folder; returns the number of bytes copied."""
    copied = 0

    def take(one: str, other: str) -> None:
        nonlocal copied
        if not (link and _is_linked(one, other)):
            copied += _copied(one, other)

    _tree(source, target, take)
    return copied


def _is_linked(one: str, other: str) -> bool:
    if Path(one).is_symlink():  # to a file that may be written in place
        return False
    try:
        os.link(one, other)
    except OSError:
        return False
    return True


def _copied(one: str, other: str) -> int:
    """Copy a file; returns the number of bytes, 0 where the filesystem shares them."""
    with open(one, "rb") as reading, open(other, "wb") as writing:  # noqa: PTH123
        shared = _is_shared(reading, writing)
        if not shared:
            shutil.copyfileobj(reading, writing, 1 << 20)
            writing.flush()
            os.fsync(writing.fileno())
    shutil.copystat(one, other)
    return 0 if shared else os.stat(other).st_size  # noqa: PTH116


def _is_shared(reading: BinaryIO, writing: BinaryIO) -> bool:
    """True if the new file shares the old one's blocks, as on XFS and Btrfs."""
    try:
        fcntl.ioctl(writing.fileno(), _FICLONE, reading.fileno())
    except OSError:
        return False
    return True


def _tree(source: Path, target: Path, take: Callable[[str, str], object]) -> None:
    """Take a file, or all files of a folder; the first error is raised unchanged."""
    if not source.is_dir():
        take(str(source), str(target))
        return
    target.mkdir()
    for entry in sorted(source.iterdir()):
        _tree(entry, target / entry.name, take)


def _ends(path: Path, size: int) -> int:
    with path.open("rb") as file:
        found = zlib.crc32(file.read(_ENDS))
        if size > _ENDS:
            file.seek(max(_ENDS, size - _ENDS))
            found = zlib.crc32(file.read(_ENDS), found)
    return found


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
