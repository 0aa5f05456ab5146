"""Digests of images, kept by path, size, time and inode: to read a large one takes a while."""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

from autoexp.storage import atomic

_LARGE = 10**9
"""Bytes from which reading is announced: several seconds."""


class Identity(NamedTuple):
    """What tells a file from another one of its name, without reading it."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, image: Path) -> Self:
        """The file's; raises OSError."""
        stat = image.stat()
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ino)


def digest_of(image: Path) -> str:
    """The SHA-256 of a file, as it was read before if the file is the same one; raises OSError."""
    now = Identity.of(image)
    if (known := kept_digest(image, now)) is not None:
        return known
    with image.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with suppress(OSError, RuntimeError):  # no home, no room: it is read again
        atomic.make_directory(_file().parent)
        atomic.write_json(_file(), {**_kept(), str(image.absolute()): [*now, digest]})
    return digest


def kept_digest(image: Path, identity: Identity) -> str | None:
    """The SHA-256 of a file as it was read before; None if that was another file, or never."""
    kept = _kept().get(str(image.absolute()), [])
    return str(kept[-1]) if kept[:-1] == list(identity) else None


def announcement(image: Path) -> str | None:
    """A sentence for a file that is large and has not been read yet; else None."""
    if not image.is_file() or (size := image.stat().st_size) < _LARGE:
        return None
    if kept_digest(image, Identity.of(image)) is not None:
        return None
    return f"reading the image ({size / 1e9:.0f} GB), once: its digest is part of the record"


def _file() -> Path:
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (named if named.is_absolute() else Path.home() / ".cache") / "autoexp" / "images.json"


def _kept() -> dict[str, list[Any]]:
    """What was read before; empty where that cannot be told."""
    with suppress(OSError, RuntimeError, ValueError, atomic.WrongFile):
        found = json.loads(atomic.read(_file()))
        if isinstance(found, dict):
            return {key: value for key, value in found.items() if isinstance(value, list)}
    return {}
