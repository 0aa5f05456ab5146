"""The lease on a session: one monitor at a time, and a dead one's is taken over."""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from autoexp import durable, processes
from autoexp.errors import SessionDamaged, SessionHeld

FILE = "monitor.json"
LOCK = "monitor.lock"
HEARTBEAT_S = 10.0
# A monitor on another host cannot be asked for its process; it is given up after this silence.
SILENCE_S = 180.0


class Holder(NamedTuple):
    """The monitor named in a lease."""

    host: str
    pid: int
    alive: bool


class Lease:
    """A held lease. Its heartbeat is the file's modification time: no byte is written."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._text = text
        self._beaten = time.monotonic()

    def beat(self) -> None:
        """Renew the lease when it is due.

        Raises SessionHeld when another monitor has taken it over meanwhile, as after a
        filesystem that hung for longer than the silence allowed.
        """
        if time.monotonic() - self._beaten < HEARTBEAT_S:
            return
        if not self._path.exists() or self._path.read_text() != self._text:
            raise SessionHeld(
                f"{self._path.parent.name}: the lease {self._path} is not this monitor's any more: "
                "another one took the session over, or somebody removed the file"
            )
        os.utime(self._path)
        self._beaten = time.monotonic()

    def release(self) -> None:
        """Give the lease back, unless somebody else holds it by now."""
        if self._path.exists() and self._path.read_text() == self._text:
            self._path.unlink()


def take(directory: Path) -> Lease:
    """Take the lease of the session in `directory`; raises SessionHeld with who holds it."""
    with _exclusively(directory):
        holder = look(directory)
        if holder is not None and holder.alive:
            raise SessionHeld(
                f"{directory.name}: held by the monitor with pid {holder.pid} on {holder.host}; "
                f"look at it with `autoexp status {directory.name} --watch`"
            )
        mine = processes.identity(os.getpid())
        text = json.dumps({**(mine or {}), "since": time.time()}, indent=1) + "\n"
        durable.write(directory / FILE, text)
    return Lease(directory / FILE, text)


def look(directory: Path) -> Holder | None:
    """Who holds the session, and whether that monitor is alive; None when nobody does."""
    path = directory / FILE
    try:
        raw = path.read_bytes()
        silence = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return None
    try:
        known: dict[str, Any] = json.loads(raw)
        alive = processes.is_alive(known)
        host, pid = str(known["host"]), int(known["pid"])
    except (ValueError, KeyError, TypeError) as error:
        raise SessionDamaged(
            f"{path} does not parse ({error}); make sure that no monitor runs, then remove it"
        ) from error
    if alive is None:
        alive = abs(silence) < SILENCE_S
    return Holder(host, pid, alive)


@contextmanager
def _exclusively(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
