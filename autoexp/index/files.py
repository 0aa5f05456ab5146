"""Rows taken from many files, kept in one: read anew are only the files that have changed.

An index is never trusted over its files: each row carries the stamp of the file that it was taken
from, and another stamp means another row. A missing, damaged or foreign index is made anew.
"""

import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from autoexp import __version__
from autoexp.storage import atomic, migrations

FOLDER = "index"
"""The folder of a session's indexes."""
LARGEST = 200 * 10**6
_FORMAT = 1
_RACY_NS = 2_000_000_000
"""A file that changed this recently may change again within the clock's grain: not kept."""

Row = TypeVar("Row", bound=BaseModel)


Stamp = tuple[int, int, int]
"""Inode, size and time of a file, which tell it from its next version."""


class _Kept(BaseModel, Generic[Row]):
    """The content of an index."""

    version: str
    rows: dict[str, tuple[Stamp, Row]]


class FileIndex(Generic[Row]):
    """Rows of files by name, in memory, and in a file of their own once that saves work."""

    def __init__(
        self, path: Path, row: type[Row], read: Callable[[Path], Row], *, worth: int = 50
    ) -> None:
        """`read` takes the row from a file; `worth` new rows and more are kept on disk."""
        self._path = path
        self._adapter = TypeAdapter(_Kept[row])  # type: ignore[valid-type]
        self._read = read
        self._worth = worth
        self._rows: dict[str, tuple[Stamp, Row]] | None = None

    def rows(self, files: Mapping[str, tuple[str, Stamp]]) -> dict[str, Row]:
        """A row for each of these files, in their order; raises what reading one raises."""
        if self._rows is None:
            self._rows = self._kept() if len(files) >= self._worth else {}
        known, self._rows, new = self._rows, {}, 0
        for name, (path, stamp) in files.items():
            found = known.get(name)
            if found is None or found[0] != stamp:
                found = (stamp, self._read(Path(path)))
                new += 1
            self._rows[name] = found
        if new >= max(self._worth, len(files) // 20):
            self._keep(self._rows)
        return {name: row for name, (_, row) in self._rows.items()}

    def _kept(self) -> dict[str, tuple[Stamp, Row]]:
        try:
            kept = self._adapter.validate_json(atomic.read(self._path, LARGEST))
        except (OSError, ValidationError):
            return {}
        return kept.rows if kept.version == version() else {}

    def _keep(self, rows: Mapping[str, tuple[Stamp, Row]]) -> None:
        def content(now_ns: int) -> bytes:
            calm = {n: each for n, each in rows.items() if each[0][2] < now_ns - _RACY_NS}
            return self._adapter.dump_json(_Kept(version=version(), rows=calm))

        keep(self._path, content)


def stamp_of(status: os.stat_result) -> Stamp:
    """The stamp of a file with this status."""
    return (status.st_ino, status.st_size, status.st_mtime_ns)


def version() -> str:
    """The version of what is kept: that of another autoexp is made anew."""
    return f"{__version__}/{migrations.VERSION}/{_FORMAT}"


def keep(path: Path, content: Callable[[int], bytes | str]) -> None:
    """Replace an index, if the session is this user's and can be written; never raises OSError.

    `content` is given the time on the clock that dates the session's files.
    """
    with suppress(OSError):
        session = path.parent.parent
        if session.stat().st_uid != os.geteuid():
            return
        atomic.make_directory(path.parent)
        with tempfile.TemporaryFile(dir=path.parent) as touched:
            now_ns = os.fstat(touched.fileno()).st_mtime_ns
        atomic.write(path, content(now_ns))


def json_files(folder: Path) -> dict[str, tuple[str, Stamp]]:
    """Paths and stamps of a folder's JSON files, by name without its ending, in their order."""
    found: list[tuple[str, tuple[str, Stamp]]] = []
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if not name.endswith(".json"):
                continue
            try:
                found.append((name[:-5], (entry.path, stamp_of(entry.stat()))))
            except FileNotFoundError:
                continue  # a link to nowhere
    return dict(sorted(found))
