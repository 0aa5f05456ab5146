"""Removing a session directory: gone in one step, and deleted after it."""

import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from autoexp import durable

_PREFIX = ".removed-"


def remove(path: Path) -> None:
    """Delete a session; a kill leaves it whole, or out of everybody's sight.

    It needs no room, so that a full disk can be helped.
    """
    remove_leftovers(path.parent)
    doomed = path.with_name(f"{_PREFIX}{path.name}-{secrets.token_hex(4)}")
    durable.step()
    path.rename(doomed)
    durable.sync_directory(path.parent)
    durable.step()
    _delete(doomed)
    if doomed.exists():
        shutil.rmtree(doomed)  # says why it cannot be


def remove_leftovers(root: Path) -> None:
    """Delete what removals have left that were killed; one that goes on is only helped."""
    for doomed in root.glob(f"{_PREFIX}*"):
        _delete(doomed)


def _delete(doomed: Path) -> None:
    """As far as it can be; somebody else may be at the same. No link is followed, wherever it is.

    Whoever may write below the root may put one there.
    """
    with suppress(OSError):
        descriptor = os.open(doomed, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            _empty(descriptor)
        finally:
            os.close(descriptor)
    shutil.rmtree(doomed, ignore_errors=True)


def _empty(directory: int) -> None:
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.name, ignore_errors=True, dir_fd=directory)
            else:
                with suppress(FileNotFoundError):
                    os.unlink(entry.name, dir_fd=directory)
            durable.step()
