"""The exception that ended a Python program, as the end of its log has it."""

import os
import re
from pathlib import Path

from autoexp.storage import atomic

_END = 65536  # bytes of the log in which it is looked for
_LONGEST = 200
_RANK = re.compile(r"^\[?(default|rank) ?\d+\]?: ?")
_BEGIN = "Traceback (most recent call last):"
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(: .*)?")
# torchrun's own, which says no more than that a process failed.
_OF_LAUNCHERS = ("ChildFailedError", "SystemExit")


def last_exception(log: Path) -> str | None:
    """The last line of the last traceback in a log, in one line; None without one."""
    try:
        with atomic.open_to_read(log) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _END))
            lines = file.read(_END).decode(errors="replace").splitlines()
    except OSError:
        return None
    found, inside = None, False
    for line in lines:
        text = _RANK.sub("", line.rstrip())
        if text.endswith(_BEGIN):
            inside = True
        elif inside and text and not text[0].isspace():
            inside = False
            name = text.partition(":")[0]
            if _EXCEPTION.fullmatch(text) and not name.endswith(_OF_LAUNCHERS):
                found = text
    return None if found is None else found[:_LONGEST]
