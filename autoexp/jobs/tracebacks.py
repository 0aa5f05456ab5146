"""What ended a program, as the end of its log has it: an exception, a runtime's fatal error."""

import os
import re
from pathlib import Path

from autoexp.storage import atomic

_END = 65536  # bytes of the log in which it is looked for
_LONGEST = 200
_RANK = re.compile(r"^\[?(default|rank) ?\d+\]?: ?")
_BEGIN = "Traceback (most recent call last):"
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(: .*)?")
FATAL = "FATAL: "
"""How the last word of Apptainer and Singularity begins on a container that did not start."""
NOT_STARTED = 255
"""The exit code of Apptainer and Singularity where they start nothing."""
DOCKER_NOT_STARTED = 125
"""The exit code of Docker and Podman where they start nothing."""
CH_RUN = "ch-run: "
"""How the last word of Charliecloud's is given; it is said before its process is the trainer's."""
_FATAL = re.compile(r"(?:FATAL:\s+|(?P<ch_run>ch-run\[\d+\]: error: ))(?P<words>\S.*)")
# Docker's own line, and Podman's: more may follow, such as where help is.
_OF_DOCKER = re.compile(r"(?:docker|podman[\w-]*): \S.*|Error: \S.*")
# torchrun's own, which says no more than that a process failed.
_OF_LAUNCHERS = ("ChildFailedError", "SystemExit")


def last_exception(log: Path) -> str | None:
    """The last line of the last traceback in a log, in one line; None without one.

    Without a traceback a container's runtime may have said why it did not start.
    """
    found, inside, fatal = None, False, None
    for line in _last_lines(log):
        text = _RANK.sub("", line.rstrip())
        if (said := _FATAL.fullmatch(text)) is not None:
            fatal = f"{CH_RUN if said['ch_run'] else FATAL}{said['words']}"
        if text.endswith(_BEGIN):
            inside = True
        elif inside and text and not text[0].isspace():
            inside = False
            name = text.partition(":")[0]
            if _EXCEPTION.fullmatch(text) and not name.endswith(_OF_LAUNCHERS):
                found = text
    found = found or fatal
    return None if found is None else found[:_LONGEST]


def last_of_docker(log: Path) -> str | None:
    """The last line in which Docker or Podman says what is wrong; None without one."""
    said = [line for line in _last_lines(log) if _OF_DOCKER.fullmatch(line)]
    return said[-1][:_LONGEST] if said else None


def _last_lines(log: Path) -> list[str]:
    try:
        with atomic.open_to_read(log) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _END))
            return file.read(_END).decode(errors="replace").splitlines()
    except OSError:
        return []
