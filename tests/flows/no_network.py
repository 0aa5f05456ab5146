"""Commands where there is no network but loopback: in a network namespace of their own."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

# It holds the namespace until its input is closed.
_HOLD = "ip link set lo up && echo up && exec cat"
_NEEDED = ("unshare", "nsenter", "ip")


@contextmanager
def no_network() -> Iterator[list[str]]:
    """The words in front of a command that is to run there; what it leaves behind ends with it."""
    if missing := [name for name in _NEEDED if shutil.which(name) is None]:
        pytest.skip(f"no network namespace can be made here: {', '.join(missing)} is missing")
    is_root = os.geteuid() == 0
    holder = subprocess.Popen(
        ["unshare", "-n" if is_root else "-rn", "sh", "-c", _HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert holder.stdin is not None and holder.stdout is not None
    try:
        if holder.stdout.readline() != b"up\n":
            pytest.skip("no network namespace can be made here")
        place = Path(f"/proc/{holder.pid}/ns/net").readlink()
        enter = ["nsenter", "-t", str(holder.pid), "-n"]
        try:
            yield enter if is_root else [*enter, "-U", "--preserve-credentials"]
        finally:
            _end_all_in(place, but=holder.pid)
    finally:
        holder.stdin.close()
        holder.stdout.close()
        holder.wait()


def _end_all_in(place: Path, but: int) -> None:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != but:
            with suppress(OSError):
                if (entry / "ns" / "net").readlink() == place:
                    os.kill(int(entry.name), signal.SIGKILL)
