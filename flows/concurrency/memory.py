"""The memory that a process which waits for days keeps from its busy beginning (glibc alone)."""

import ctypes
import gc
from contextlib import suppress
from pathlib import Path

_M_ARENA_MAX = -8
_MADV_DONTNEED = 4


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


def give_back_code() -> None:
    """Give back the pages of compiled code, before a rest in which none of it runs.

    They come again from the file, or its cache, as they are needed.
    """
    with suppress(AttributeError, OSError, ValueError):
        madvise = ctypes.CDLL(None).madvise
        for line in Path("/proc/self/maps").read_text().splitlines():
            addresses, permissions, _, _, inode = line.split()[:5]
            if permissions == "r-xp" and inode != "0":  # of a file, and never written to
                begin, end = (int(each, 16) for each in addresses.split("-"))
                madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_DONTNEED)
