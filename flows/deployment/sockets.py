"""Finds who listens on a port of this machine, and whether anybody is connected to it."""

from collections.abc import Iterator
from pathlib import Path

_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTENS = "0A"
# Established, being established, closed by the other side that may still await an answer.
_CONNECTED = frozenset({"01", "03", "08"})


def listeners(port: int, tables: tuple[Path, ...] = _TABLES) -> set[int]:
    """The uids of those who listen on a port here; empty: nobody, or the kernel does not tell."""
    return {uid for state, uid in _sockets(port, tables) if state == _LISTENS}


def is_connected(port: int, tables: tuple[Path, ...] = _TABLES) -> bool:
    """True if somebody is connected to a port here, accepted or not yet."""
    return any(state in _CONNECTED for state, _ in _sockets(port, tables))


def _sockets(port: int, tables: tuple[Path, ...]) -> Iterator[tuple[str, int]]:
    """State and uid of each socket whose own end is this port."""
    for table in tables:
        try:
            rows = table.read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            # sl, local_address, rem_address, st, queues, timer, retrnsmt, uid
            fields = row.split()
            if int(fields[1].rpartition(":")[2], 16) == port:
                yield fields[3], int(fields[7])
