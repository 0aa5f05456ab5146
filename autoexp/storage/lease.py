"""The lease on a session: one monitor at a time; a dead monitor's lease is taken over.

The holder's name stands in `monitor.json`, with the machine's id, its boot and the pid namespace;
its heartbeat is that file's modification time, which is compared with that of `monitor.lock`,
touched now: both are dated by the file server. What a
holder writes it writes inside `writing()`, which holds `monitor.lock` and has looked whether the
lease is still its own; who takes a lease over holds the same lock. So where locks reach all hosts
nothing is written by a monitor that was taken over, whenever it was stopped. Where they are the
host's own, as on Lustre with `localflock`, a monitor that was stopped between the look and the
write can do that one write when it wakes.
"""

import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from autoexp.errors import SessionDamaged, SessionHeld
from autoexp.storage import atomic, locks, processes

FILE = "monitor.json"
LOCK = "monitor.lock"
HEARTBEAT_S = 10.0
# The process of a monitor on another host cannot be checked; it counts as dead after this silence.
SILENCE_S = 180.0
_LARGEST = 65536
"""Most bytes of the file that names a monitor, which has a few hundred."""
# A holder keeps the lock for one round of writes; nobody takes its lease over while it hangs there.
_PATIENCE_S = 20.0


class Holder(NamedTuple):
    """The monitor named in a lease."""

    host: str
    pid: int
    alive: bool


def _elapsed() -> float:
    """Seconds on a clock that runs on while a process is stopped, or the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """A held lease. Its heartbeat is the file's modification time: no byte is written."""

    def __init__(self, directory: Path, text: str) -> None:
        self._path = directory / FILE
        self._text = text
        self._seen = self._beaten = _elapsed()
        self._mutex = threading.RLock()
        self._is_writing = False

    def still_held(self) -> bool:
        """True if the lease is this monitor's, read from the disk now; callable from any thread.

        Raises OSError where the disk does not answer: then it is unknown.
        """
        try:
            return atomic.read(self._path, _LARGEST) == self._text.encode()
        except (FileNotFoundError, atomic.WrongFile):
            return False

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A context for any number of writes, during which nobody can take the lease over.

        Rounds may be nested. Raises SessionHeld when the lease is another monitor's by now.
        """
        with self._mutex:
            if self._is_writing:
                # Only a stop for that long within a round can have cost the lease.
                if _elapsed() - self._seen > HEARTBEAT_S:
                    self.refuse_lost()
                yield
                return
            with self._round():
                self.refuse_lost()
                self._is_writing = True
                try:
                    yield
                finally:
                    self._is_writing = False

    @contextmanager
    def _round(self) -> Iterator[None]:
        """Hold the lock: nobody else holds it for longer than a take-over of the lease."""
        try:
            with locks.exclusively(self._path.with_name(LOCK), _PATIENCE_S):
                yield
        except FileNotFoundError:
            self.refuse_lost()  # the whole session was taken away
            raise
        except locks.Busy:
            raise _locked(self._path.parent) from None

    def beat(self) -> None:
        """Renew the lease when it is due.

        Raises SessionHeld when another monitor has taken it over meanwhile, as after a
        filesystem that hung, or a process that was stopped, for longer than the silence allowed.
        """
        if _elapsed() - self._beaten < HEARTBEAT_S:
            return
        with self.writing():
            self.refuse_lost()
            os.utime(self._path)  # the file server's own clock, not ours
            self._beaten = _elapsed()

    def release(self) -> None:
        """Release the lease, unless another monitor holds it by now."""
        if self.still_held():
            self._path.unlink(missing_ok=True)

    def refuse_lost(self) -> None:
        """Raise SessionHeld once the lease is another monitor's; callable from any thread."""
        now = _elapsed()
        if not self.still_held():
            directory = self._path.parent
            if not directory.exists():
                raise SessionHeld(gone(directory))
            raise SessionHeld(
                f"{directory.name}: the lease {self._path} is no longer this monitor's: "
                "another one took the session over, or the file was removed"
            )
        self._seen = now


def forsake(directory: Path) -> None:
    """Remove a lease that this very process holds, which is about to write no more."""
    with suppress(OSError, ValueError, AttributeError):
        known = json.loads(atomic.read(directory / FILE, _LARGEST))
        if all(known.get(name) == value for name, value in processes.own_identity().items()):
            (directory / FILE).unlink()


def gone(directory: Path) -> str:
    """The error for a session whose directory no longer exists."""
    return (
        f"{directory}: the session no longer exists: it was removed or moved away; "
        "submitted jobs go on"
    )


def take(directory: Path) -> Lease:
    """Take the lease of the session in `directory`; raises SessionHeld with who holds it."""
    _refuse_alive(directory)
    try:
        with locks.exclusively(directory / LOCK, _PATIENCE_S):
            _refuse_alive(directory)
            mine = processes.own_identity()
            content = {**mine, "since": time.time(), "nonce": secrets.token_hex(8)}
            text = json.dumps(content, indent=1) + "\n"
            atomic.write(directory / FILE, text)
    except locks.Busy:
        raise _locked(directory) from None
    return Lease(directory, text)


def held_by(session: str, holder: Holder) -> str:
    """The message for a session that has a live monitor."""
    return (
        f"{session}: held by the monitor with pid {holder.pid} on {holder.host}; "
        f"look at it with `autoexp status {session} --watch`"
    )


def _refuse_alive(directory: Path) -> None:
    holder, ahead_s = _look(directory)
    if holder is None or not holder.alive:
        return
    message = held_by(directory.name, holder)
    if ahead_s > SILENCE_S:
        message += (
            f". Its last sign of life is dated {ahead_s:.0f} s ahead of the file server's clock, "
            "so its age is unknown: if that monitor certainly no longer runs, remove "
            f"{directory / FILE}"
        )
    raise SessionHeld(message)


def _locked(directory: Path) -> SessionHeld:
    return SessionHeld(
        f"{directory.name}: another monitor has been writing for {_PATIENCE_S:.0f} s, or hangs in "
        f"it: it holds {directory / LOCK}; end it (`fuser` on its host names it), or remove that "
        "file if its host is gone for certain"
    )


def look(directory: Path) -> Holder | None:
    """The holder of the session, and True if that monitor is alive; None when there is none."""
    return _look(directory)[0]


def _look(directory: Path) -> tuple[Holder | None, float]:
    """`look`, and the seconds by which the last heartbeat is ahead of the file server's clock."""
    path = directory / FILE
    try:
        # Opened anew, so that a client's cache of it is refreshed.
        with atomic.open_to_read(path) as file:
            raw = file.read(_LARGEST)
            beaten_at = os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None, 0.0
    except atomic.WrongFile as error:
        raise SessionDamaged(
            f"{path} is {error.strerror}; make sure that no monitor runs, then remove it"
        ) from error
    try:
        known: dict[str, Any] = json.loads(raw)
        alive = processes.is_alive(known)
        host, pid = str(known["host"]), int(known["pid"])
    except (ValueError, KeyError, TypeError) as error:
        raise SessionDamaged(
            f"{path} does not parse ({error}); make sure that no monitor runs, then remove it"
        ) from error
    if alive is not None:
        return Holder(host, pid, alive), 0.0
    silence = _server_time(directory) - beaten_at
    # From the future, by a clock that was set: no evidence of death.
    return Holder(host, pid, silence < SILENCE_S), -silence


def _server_time(directory: Path) -> float:
    """The time on the clock that dates heartbeats; the local clock for those who may only read."""
    path = directory / LOCK
    try:
        os.close(locks.open_lock(path))  # made, where somebody has removed it
        os.utime(path)
        return path.stat().st_mtime
    except OSError:
        return time.time()
