"""Finds who listens on a port of this machine: another user's server is not ours."""

from collections.abc import Iterator
from pathlib import Path

_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTENS = "0A"


def listeners(port: int, tables: tuple[Path, ...] = _TABLES) -> set[int]:
    """The uids of those who listen on a port here; empty: nobody, or the kernel does not tell."""
    return {uid for table in tables for uid in _listeners(port, table)}


def _listeners(port: int, table: Path) -> Iterator[int]:
    try:
        rows = table.read_text().splitlines()[1:]
    except OSError:
        return
    for row in rows:
        # sl, local_address, rem_address, st, queues, timer, retrnsmt, uid
        fields = row.split()
        if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
            yield int(fields[7])
