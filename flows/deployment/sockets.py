"""Finds who listens on a port of this machine, and whether anybody is connected to it."""

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTENS = "0A"
# Established, being established, closed by the other side that may still await an answer.
_CONNECTED = frozenset({"01", "03", "08"})


# sock_diag(7): NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, TCP_LISTEN.
_SOCK_DIAG, _BY_FAMILY, _DUMP, _STATES = 4, 20, 0x301, 1 << 10
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_ASKED = struct.Struct("=BBBxI")
# Of an answer: family, state, timer, retransmissions, source port, the rest of the address and
# three counters, uid.
_ANSWER = struct.Struct("=BBBB2s58xI")
_PATIENCE_S = 5.0


def listeners(port: int) -> set[int]:
    """The uids of those who listen on a port here; empty: nobody, or the kernel does not tell."""
    try:
        families = (socket.AF_INET, socket.AF_INET6)
        return {uid for family in families for uid in _asked(family, port)}
    except (OSError, struct.error):  # a kernel without the module, a container that forbids it
        return listed(port)


def listed(port: int, tables: tuple[Path, ...] = _TABLES) -> set[int]:
    """The same from the table of all sockets, whose making takes the kernel milliseconds."""
    return {uid for state, uid in _sockets(port, tables) if state == _LISTENS}


def _asked(family: int, port: int) -> Iterator[int]:
    """Ask the kernel for the uids of those who listen on a port."""
    address = struct.pack(">H46x", port)
    asked = _ASKED.pack(family, socket.IPPROTO_TCP, 0, _STATES) + address
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, _SOCK_DIAG) as kernel:
        kernel.settimeout(_PATIENCE_S)
        kernel.send(_HEADER.pack(_HEADER.size + len(asked), _BY_FAMILY, _DUMP, 0, 0) + asked)
        while True:
            data = kernel.recv(1 << 16)
            if not data:
                raise OSError("the kernel ended the connection")
            while data:
                length, answer, *_ = _HEADER.unpack_from(data)
                if length < _HEADER.size:
                    raise OSError("an answer of the kernel that is none")
                if answer == _DONE:
                    return
                if answer == _ERROR:
                    code = -struct.unpack_from("=i", data, _HEADER.size)[0]
                    raise OSError(code, os.strerror(code))
                *_, source, uid = _ANSWER.unpack_from(data, _HEADER.size)
                if int.from_bytes(source, "big") == port:
                    yield uid
                data = data[(length + 3) & ~3 :]


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
