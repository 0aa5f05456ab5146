"""A pool of GPU slots in memory, whose leases end, and whose server is away when it is told to."""

import itertools

from autoexp.resources.pools import HeldSlots, InUse, PoolUnavailable, Wanted
from tests.fakes.scheduler import Killed


class FakePool:
    """One pool; it outlives the monitors that use it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.leases: dict[str, int] = {}
        self.is_away = False
        self.dies_after: str | None = None
        """The call after which the monitor is killed: the pool has done it, nobody knows."""
        self.calls: list[str] = []
        self._numbers = itertools.count()

    @property
    def used(self) -> int:
        return sum(self.leases.values())

    def end(self, lease: str) -> None:
        """Have a lease end that nobody has renewed."""
        del self.leases[lease]

    def take(self, wanted: Wanted) -> HeldSlots | InUse:
        self._called("take")
        if self.used + wanted.slots > self.limit:
            return InUse(self.used, self.limit)
        lease = f"lease-{next(self._numbers)}"
        self.leases[lease] = wanted.slots
        self._done("take")
        return HeldSlots(pool=wanted.pool, slots=wanted.slots, lease=lease)

    def renew(self, held: HeldSlots) -> bool:
        self._called("renew")
        self._done("renew")
        return held.lease in self.leases

    def give_back(self, held: HeldSlots) -> None:
        self._called("give_back")
        self.leases.pop(held.lease, None)
        self._done("give_back")

    def _called(self, what: str) -> None:
        self.calls.append(what)
        if self.is_away:
            raise PoolUnavailable("no server answers")

    def _done(self, what: str) -> None:
        if self.dies_after == what:
            self.dies_after = None
            raise Killed
