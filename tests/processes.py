"""Processes that tests start, ask after and wait for."""

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from autoexp.jobs.record import Attempt
from autoexp.jobs.spec import JobSpec
from autoexp.payload import process_identity
from autoexp.schedulers.base import AttemptRef, PayloadSpec, prepare

WaitFor = Callable[[Callable[[], object], str], None]


class Job(NamedTuple):
    """An attempt at a command, in a directory of its key."""

    ref: AttemptRef
    spec: JobSpec
    attempt: Attempt

    def prepare(self, *, grace_s: float = 10.0, **others: Any) -> None:
        """Lay out what its payload runs; `others` are fields of PayloadSpec."""
        payload_spec = PayloadSpec(self.spec.command, self.spec.environment, grace_s)
        prepare(self.ref, self.spec, self.attempt, payload_spec._replace(**others))

    @property
    def directory(self) -> Path:
        return self.ref.directory

    @property
    def output(self) -> Path:
        return Path(self.spec.output_dir)

    @property
    def log(self) -> bytes:
        path = Path(self.attempt.log)
        return path.read_bytes() if path.exists() else b""

    def read(self, name: str) -> dict[str, Any]:
        """A file that the payload left in the attempt's directory."""
        content: dict[str, Any] = json.loads((self.directory / name).read_text())
        return content


JobOf = Callable[..., Job]


def is_alive(pid: int | str) -> bool:
    """Whether a process runs; a zombie does not."""
    return process_identity(int(pid)) is not None


def in_a_process(act: Callable[[], object]) -> int:
    """Start `act` in a process of its own; its exit code is what `act` returns."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = int(act() or 0)  # type: ignore[call-overload]
        finally:
            os._exit(code)
    return child


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait for other processes; fail after two minutes."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        time.sleep(0.01)


def marked(mark: bytes) -> list[int]:
    """Other processes that have this variable in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if mark in environment.split(b"\0"):
                found.append(int(entry.name))
    return found


def state(pid: int) -> str:
    """A process's state as in `ps`; empty when it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def cpu_ticks(pid: int) -> int:
    """CPU time that a process has used, in ticks of the clock; 0 for one that is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return sum(map(int, text.rpartition(")")[2].split()[11:13]))


def stands_still(pid: int) -> bool:
    """True while a process is stopped, as by SIGSTOP."""
    return state(pid) == "T"
