"""A group's GPUs as a pool of slots that many sessions share, and the port to whoever counts them.

The pool itself is outside: `flows/concurrency/gpu_pool.py` counts in Prefect. Slots are held by a
lease: whoever no longer renews it, for example a killed monitor, loses them.
"""

from math import inf
from typing import Any, NamedTuple, Protocol

from pydantic import Field

from autoexp.errors import AutoexpError
from autoexp.model import FrozenModel

POOL_FIELD: Any = Field(
    None,
    pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]*$",
    max_length=200,
    description="a global concurrency limit of Prefect, by name: a budget of GPUs that sessions "
    "share, of which a job takes as many slots as it has GPUs before it is submitted",
)
"""The setting of a machine that names its pool."""


class PoolUnavailable(AutoexpError):
    """Nobody can say how many slots of a pool are free: no server answers, or it has no pool."""


class HeldSlots(FrozenModel):
    """Slots of a pool that a job holds."""

    pool: str
    slots: int
    lease: str
    """By which the pool knows them."""


class Wanted(NamedTuple):
    """Slots that a job needs before it is submitted."""

    pool: str
    slots: int


class InUse(NamedTuple):
    """The answer of a pool that has too few slots now."""

    used: int
    limit: int


class SlotPool(Protocol):
    """Counts the slots of pools for all sessions; its methods may block, and raise PoolUnavailable.

    A call that is killed half way may leave slots taken under a lease that nobody knows, which ends
    by itself.
    """

    def take(self, wanted: Wanted) -> HeldSlots | InUse:
        """Take slots, all of them or none."""

    def renew(self, held: HeldSlots) -> bool:
        """Keep slots for longer; False once they are lost: the lease has ended."""

    def give_back(self, held: HeldSlots) -> None:
        """Give slots back; nothing happens for those that are lost."""


def why_waiting(wanted: Wanted, answer: InUse) -> str:
    """Why a job waits for slots."""
    gpus = "GPU" if wanted.slots == 1 else "GPUs"
    need = f"waits for {wanted.slots} {gpus} of pool {wanted.pool}"
    if wanted.slots > answer.limit:
        return f"{need}, which has {answer.limit}: it can never be submitted"
    return f"{need} ({answer.used} of {answer.limit} in use)"


class _Refusal(NamedTuple):
    slots: int
    """Who wants as many, or more, waits."""
    answer: InUse
    retry_at: float
    asked_by: str | None = None


class Queue:
    """Who of a session may ask a pool now, in the session's order.

    What was refused to one job is refused to all that want more than is free, until one of them has
    asked again: a hundred jobs that wait are one question a tick.
    """

    def __init__(self) -> None:
        self._refusals: dict[str, _Refusal] = {}
        self._waiting: dict[str, Wanted] = {}

    @property
    def waiting(self) -> set[str]:
        """Names of the jobs that wait."""
        return set(self._waiting)

    def next_at(self) -> float:
        """When a job that waits may ask, on the clock of `may_ask`."""
        pools = {wanted.pool for wanted in self._waiting.values()}
        refusals = [self._refusals.get(pool) for pool in pools]
        return min((-inf if each is None else each.retry_at for each in refusals), default=inf)

    def may_ask(self, job: str, wanted: Wanted, now: float) -> InUse | None:
        """None if a job may ask; else the answer that others had, until when it waits."""
        refusal = self._refusals.get(wanted.pool)
        if refusal is None or wanted.slots < refusal.slots:
            self._waiting.pop(job, None)
            return None
        if now < refusal.retry_at:
            self._waiting[job] = wanted
            return refusal.answer
        self._refusals[wanted.pool] = refusal._replace(retry_at=inf, asked_by=job)
        self._waiting.pop(job, None)
        return None

    def refuse(self, job: str, wanted: Wanted, answer: InUse, retry_at: float) -> None:
        """Note that a pool had too few slots for a job."""
        self._waiting[job] = wanted
        # Who wants fewer than are free need not wait behind it.
        fewest = min(wanted.slots, max(1, answer.limit - answer.used + 1))
        self._refusals[wanted.pool] = _Refusal(fewest, answer, retry_at)

    def answered(self, job: str) -> None:
        """Note that a job's step has ended: whatever came of it, the next one may ask."""
        for pool, refusal in list(self._refusals.items()):
            if refusal.asked_by == job:
                del self._refusals[pool]

    def forget(self, job: str) -> None:
        """Note that a job wants no slots any longer."""
        self._waiting.pop(job, None)
