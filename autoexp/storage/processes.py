"""Checks if a recorded process is still alive, on this machine or another."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autoexp import payload

identity = payload.process_identity
own_identity = payload.own_identity

# The kernel's own number of the namespace in which every process of the machine has a pid.
_OF_THE_MACHINE = "pid:[4026531836]"


class OutOfSight(Exception):
    """It cannot be told from here if a process is alive."""


def pid_of(known: dict[str, Any]) -> int | None:
    """The pid here of the process of `known` (see payload.own_identity); None: dead.

    Raises OutOfSight where it ran on another machine, or in a container that hides its processes
    from here. Host names do not show that, since containers and clones share them; nor do pids,
    which each container counts from 1, and which are reused.
    """
    mine = own_identity()
    if known["host"] != mine["host"]:
        raise OutOfSight
    where = known.get("pid_namespace", mine["pid_namespace"])
    if known["boot_id"] != mine["boot_id"]:
        if rebooted_since(known) and where == mine["pid_namespace"] == _OF_THE_MACHINE:
            return None
        raise OutOfSight
    if where == mine["pid_namespace"]:
        seen = identity(known["pid"])
        is_same = seen is not None and seen["start_ticks"] == known["start_ticks"]
        return int(known["pid"]) if is_same else None
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _is(int(entry.name), where, known):
            return int(entry.name)
    if mine["pid_namespace"] == _OF_THE_MACHINE:
        return None
    raise OutOfSight


def _is(pid: int, namespace: str, known: dict[str, Any]) -> bool:
    """True if a process that has this pid here is the one of `known` in its own namespace."""
    try:
        if os.readlink(f"/proc/{pid}/ns/pid") != namespace:  # noqa: PTH115
            return False
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # another user's, or one that has ended
        return False
    pids = next((line.split()[1:] for line in lines if line.startswith("NSpid:")), [])
    seen = identity(pid)
    return (
        pids[-1:] == [str(known["pid"])]
        and seen is not None
        and seen["start_ticks"] == known["start_ticks"]
    )


def is_alive(known: dict[str, Any]) -> bool | None:
    """True if the process of `known` is alive; None: unknown from here."""
    try:
        return pid_of(known) is not None
    except OutOfSight:
        return None


def rebooted_since(known: dict[str, Any]) -> bool:
    """True if this machine is the one of `known` and has been rebooted since."""
    mine = own_identity()
    is_here = all(known.get(name, mine[name]) == mine[name] for name in ("host", "host_id"))
    return is_here and known["boot_id"] != mine["boot_id"]


@contextmanager
def without_collections() -> Iterator[None]:
    """Look for no garbage while much is made that stays: imports of Prefect, thousands of records.

    Each collection looks at all that is there: a tenth of the CPU time of such imports.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
