"""Stands in for a trainer in the doctor's job: reports its place, and each signal that reaches it.

Where the job has several nodes, the first process of the second sends to the first of all what one
TCP connection carries, by the name at which a trainer's processes would meet. Runs with the Python
of the trainer, so the standard library alone: `probe.py REPORTS [FILE]`, where FILE is one at which
the trainer would save.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType

_DEVICES = ("nvidia[0-9]*", "dri/renderD*")
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
_PATIENCE_S = 150.0
_LINK_S = 2.0
"""For how long one node sends to the other."""
_LINK_BYTES = 8 * 2**30
"""No more is sent, however fast it is."""
_LINK_PATIENCE_S = 30.0
_LINK_PAUSE_S = 5.0
"""Silence after which a connection is given up."""
_BLOCK = bytes(2**20)


def report() -> dict[str, object]:
    """This process's place: its number, node, cores and devices."""
    environ, devices = os.environ, (Path("/dev").glob(pattern) for pattern in _DEVICES)
    return {
        "rank": int(environ.get("RANK") or environ.get("SLURM_PROCID") or 0),
        "host": environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        "cores": sorted(os.sched_getaffinity(0)),
        "devices": [str(path) for found in devices for path in sorted(found)],
        "visible": {name: environ[name] for name in _VISIBLE if name in environ},
    }


def write(path: Path, content: object) -> None:
    """Write a file whole: it is looked for at any moment."""
    part = path.with_name("." + path.name)
    part.write_text(json.dumps(content))
    part.replace(path)


def try_link(folder: Path, rank: int) -> None:
    """Measure the way between two nodes, in the two processes that are its ends."""
    environ = os.environ
    node = environ.get("GROUP_RANK") or environ.get("SLURM_NODEID") or "0"
    place = environ.get("LOCAL_RANK") or environ.get("SLURM_LOCALID") or "0"
    ends = {("0", "0"): receive, ("1", "0"): send}
    end = ends.get((node, place))
    if end is None or int(environ.get("SLURM_NNODES") or 1) < 2:
        return
    try:
        said = end(folder, environ.get("MASTER_ADDR", ""))
    except (OSError, ValueError) as error:
        said = {"error": str(error) or type(error).__name__}
    write(folder / f"{end.__name__}-{rank}.json", said)


def receive(folder: Path, address: str) -> dict[str, object]:
    """Take what the other node sends; returns bytes and seconds. Raises OSError if it does not."""
    end_s, token = time.monotonic() + _LINK_PATIENCE_S, secrets.token_hex(16)
    # At every address, as the trainer's processes would listen.
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    with socket.create_server(("", 0), family=family, dualstack_ipv6=both) as server:
        server.settimeout(_LINK_PATIENCE_S)
        write(folder / "link.json", {"port": server.getsockname()[1], "token": token})
        while time.monotonic() < end_s:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(_LINK_PAUSE_S)
                # Whoever else connects is not listened to.
                if not hmac.compare_digest(_exactly(connection, len(token)), token.encode()):
                    continue
                block, count, began = bytearray(len(_BLOCK)), 0, time.monotonic()
                while count <= 2 * _LINK_BYTES and (more := connection.recv_into(block)):
                    count += more
                took = time.monotonic() - began
                return {"bytes": count, "seconds": took, "address": address}
    raise TimeoutError("nobody has connected")


def _exactly(connection: socket.socket, size: int) -> bytes:
    """The first bytes of a connection: fewer where it ends or pauses."""
    found = b""
    try:
        while len(found) < size and (more := connection.recv(size - len(found))):
            found += more
    except OSError:
        pass
    return found


def send(folder: Path, address: str) -> dict[str, object]:
    """Send to the first node what fits into two seconds. Raises OSError if it cannot be reached."""
    end_s, path = time.monotonic() + _LINK_PATIENCE_S, folder / "link.json"
    while not path.exists():
        if time.monotonic() > end_s:
            raise TimeoutError("the first node does not listen")
        time.sleep(0.05)
    link = json.loads(path.read_text())
    try:
        connection = socket.create_connection((address, int(link["port"])), _LINK_PAUSE_S)
    except OSError as error:
        raise OSError(f"{address}: {error}") from error
    with connection:
        connection.sendall(link["token"].encode())
        count, end_s = 0, time.monotonic() + _LINK_S
        while time.monotonic() < end_s and count < _LINK_BYTES:
            count += connection.send(_BLOCK)
    return {"bytes": count}


def main(folder: Path, file: Path | None) -> int:
    """Report, then wait for a signal, or for the file, and report that."""
    found = report()
    told: list[str] = []

    def note(signum: int, _frame: FrameType | None) -> None:
        told.append(signal.Signals(signum).name)

    for name in ("SIGTERM", "SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, name), note)
    write(folder / f"report-{found['rank']}.json", found)
    threading.Thread(target=try_link, args=(folder, found["rank"]), daemon=True).start()
    end_s = time.monotonic() + _PATIENCE_S
    while not told and time.monotonic() < end_s:
        if file is not None and file.exists():
            told.append("file")
        time.sleep(0.05)
    if told:
        write(folder / f"told-{found['rank']}.json", told[0])
    return 0 if told else 1


if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(main(Path(words[0]), Path(words[1]) if len(words) > 1 else None))
