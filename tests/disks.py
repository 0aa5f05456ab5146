"""Disks that are full."""

import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

FullDisk = Callable[[int], AbstractContextManager[None]]


@contextmanager
def full_disk(most: int) -> Iterator[None]:
    """No file can grow beyond so many bytes; a write that would ends short."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
