"""Digests of images, kept by path, size, time and inode: to read a large one takes a while."""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from autoexp.storage import atomic

_LARGE = 10**9
"""Bytes from which reading is announced: several seconds."""


def digest_of(image: Path) -> str:
    """The SHA-256 of a file, as it was read before if the file is the same one; raises OSError."""
    kept, key = _kept(), str(image.absolute())
    now = _identity(image)
    if key in kept and kept[key][:-1] == now:
        return str(kept[key][-1])
    with image.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with suppress(OSError, RuntimeError):  # no home, no room: it is read again
        atomic.make_directory(_file().parent)
        atomic.write_json(_file(), {**kept, key: [*now, digest]})
    return digest


def announcement(image: Path) -> str | None:
    """A sentence for a file that is large and has not been read yet; else None."""
    if not image.is_file() or (size := image.stat().st_size) < _LARGE:
        return None
    if _kept().get(str(image.absolute()), [])[:-1] == _identity(image):
        return None
    return f"reading the image ({size / 1e9:.0f} GB), once: its digest is part of the record"


def _identity(image: Path) -> list[int]:
    stat = image.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


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
