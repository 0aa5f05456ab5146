"""The memory that a process which waits for days keeps from its busy beginning (glibc alone)."""

import ctypes
import gc
from contextlib import suppress

_M_ARENA_MAX = -8


def use_one_arena() -> None:
    """Have all threads share one heap: each one's own would keep what it once needed.

    For a process whose threads take turns, as Python's do.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Give back to the system what is not used, before a long rest."""
    gc.collect()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
