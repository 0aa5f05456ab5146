"""Whether a process that was written down still lives, on this machine or another."""

import os
import socket
from pathlib import Path
from typing import Any

from autoexp import payload

identity = payload.process_identity


def own_identity() -> dict[str, Any]:
    """This process, also for those to whom its pid means another one, or none."""
    return {**(identity(os.getpid()) or {}), "pid_namespace": _namespace()}


def _namespace() -> str:
    """Where pids are counted: a container may have the host's name, and pids of its own."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def is_alive(known: dict[str, Any]) -> bool | None:
    """Whether the process of `known` (see payload.process_identity) lives; None: cannot tell.

    It cannot be told from another host, nor from outside of the container that it runs in. A pid
    alone would not do: pids are reused, so the start time and the boot have to agree as well.
    """
    if known["host"] != socket.gethostname():
        return None
    if known.get("pid_namespace", _namespace()) != _namespace():
        return None
    seen = payload.process_identity(known["pid"])
    return seen is not None and all(seen[k] == known[k] for k in ("start_ticks", "boot_id"))


def rebooted_since(known: dict[str, Any]) -> bool:
    """Whether this machine is the one of `known` and has been rebooted since."""
    seen = payload.process_identity(1)
    return (
        seen is not None and known["host"] == seen["host"] and known["boot_id"] != seen["boot_id"]
    )
