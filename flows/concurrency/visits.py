"""Who looks at the embedded Prefect server, as it says itself; nothing is asked of it for that."""

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress

OWN_HEADER = "X-Autoexp-Monitor"
"""On the requests of the session itself, which is nobody who looks."""
LOOKED, CHANGED = b"l", b"c"
"""What the server says: somebody looks at it; somebody has set the state of a run."""
STARTED, ENDED = b"s", b"e"
"""What its keeper hears and says beside: it has started, it has ended."""
_SHOWN_S = 60.0
"""How long after a look the page is kept up to date; an open page asks again within seconds."""
_BYTES = 4096


class Visits:
    """Looks at an embedded server; without one, somebody may be looking at any time.

    `heard` is called after news of any kind from the server, on the loop's thread.
    """

    def __init__(self, descriptor: int | None, heard: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self.heard = heard
        self._looked_at: float | None = None
        self._is_new = False
        self._has_change = False

    @property
    def are_known(self) -> bool:
        """True for an embedded server, which says who looks."""
        return self._descriptor is not None

    @property
    def is_watched(self) -> bool:
        """True while somebody looks, as far as is known."""
        if self._descriptor is None:
            return True
        return self._looked_at is not None and time.monotonic() - self._looked_at < _SHOWN_S

    def take_new(self) -> bool:
        """True if somebody has begun to look since the last call."""
        new, self._is_new = self._is_new, False
        return new

    def take_change(self) -> bool:
        """True if somebody may have set the state of a run since the last call."""
        changed, self._has_change = self._has_change, False
        return changed

    def listen(self) -> None:
        """Begin to listen on the running loop."""
        if self._descriptor is not None:
            asyncio.get_running_loop().add_reader(self._descriptor, self._read)

    def close(self) -> None:
        """Stop listening."""
        if self._descriptor is not None:
            asyncio.get_running_loop().remove_reader(self._descriptor)

    def _read(self) -> None:
        assert self._descriptor is not None
        with suppress(BlockingIOError):
            received = os.read(self._descriptor, _BYTES)
            if not received:
                self.close()  # the server is gone
                return
            if LOOKED in received:
                self._is_new |= not self.is_watched
                self._looked_at = time.monotonic()
            self._has_change |= CHANGED in received
            self.heard()
