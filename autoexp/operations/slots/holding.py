"""Takes, keeps and gives back a job's slots of a pool, phase by phase.

Slots are written down in the same write as the intent of the attempt that they are for. A kill
before that leaves a lease that nobody knows, which ends by itself; after it whoever resumes renews
the lease that is written down, and takes slots anew only where that has ended.
"""

import logging
from collections.abc import Generator
from typing import Any, NamedTuple

from autoexp.monitor.monitor import Monitor
from autoexp.monitor.worklist import Worklist
from autoexp.operations.phases import OnSession, Phase, Phases
from autoexp.resources.pools import HeldSlots, InUse, PoolUnavailable, SlotPool, Wanted
from autoexp.schedulers.base import Scheduler
from autoexp.session.session import Session

Logger = logging.Logger | logging.LoggerAdapter[Any]


class Taking(NamedTuple):
    """Slots that are to be taken."""

    pool: SlotPool
    wanted: Wanted

    @property
    def title(self) -> str:
        return f"take {self.wanted.slots} of pool {self.wanted.pool}"

    def run(self, scheduler: Scheduler) -> HeldSlots | InUse:
        del scheduler
        return self.pool.take(self.wanted)


class Renewal(NamedTuple):
    """Slots that are to be kept."""

    pool: SlotPool
    held: HeldSlots

    @property
    def title(self) -> str:
        return f"keep {self.held.slots} of pool {self.held.pool}"

    def run(self, scheduler: Scheduler) -> bool:
        del scheduler
        return self.pool.renew(self.held)


class Return(NamedTuple):
    """Slots that are to be given back."""

    pool: SlotPool
    held: HeldSlots

    @property
    def title(self) -> str:
        return f"give back {self.held.slots} of pool {self.held.pool}"

    def run(self, scheduler: Scheduler) -> None:
        del scheduler
        self.pool.give_back(self.held)


def taken(name: str, monitor: Monitor, log: Logger) -> Generator[Phase, Any, HeldSlots | bool]:
    """Take the slots that a job needs for its next attempt, and return them.

    True: it needs none, or nobody counts them now; False: there are too few, and it waits.
    """
    wanted = yield OnSession(lambda: _wanted(monitor, name))
    if wanted is None:
        return True
    work = monitor.worklist
    assert work.pool is not None
    try:
        answer: HeldSlots | InUse = yield Taking(work.pool, wanted)
    except PoolUnavailable as error:
        away = error
        yield OnSession(lambda: _note(work, wanted.pool, away, log))
        return True
    yield OnSession(lambda: _note(work, wanted.pool, None, log))
    if isinstance(answer, HeldSlots):
        return answer
    refused = answer
    why = yield OnSession(lambda: work.refuse_slots(name, wanted, refused))
    log.debug("%s: %s", name, why)
    return False


def _wanted(monitor: Monitor, name: str) -> Wanted | None:
    job = monitor.session.jobs[name]
    # An attempt that is intended may have been submitted: it is never held up.
    if monitor.worklist.pool is None or job.open_attempts or job.is_ending:
        return None
    return job.wanted_slots


def _note(work: Worklist, pool: str, error: PoolUnavailable | None, log: Logger) -> None:
    """Say once that a pool cannot be asked, and once that it can again."""
    if not work.note_pool(pool, error):
        return
    if error is None:
        log.warning("pool %s is counted again", pool)
    else:
        log.warning(
            "pool %s: %s; jobs are submitted without its slots, and take them once it answers",
            *(pool, error),
        )


def returned(held: HeldSlots, monitor: Monitor, log: Logger) -> Phases:
    """Give slots back; where nobody answers they end with their lease, which nobody renews."""
    work = monitor.worklist
    if work.pool is None:
        return
    try:
        yield Return(work.pool, held)
    except PoolUnavailable as error:
        away = error
        yield OnSession(lambda: _note(work, held.pool, away, log))


def give_back(name: str, monitor: Monitor, log: Logger) -> Phases:
    """Give back the slots of a job that needs them no longer."""
    held = yield OnSession(lambda: monitor.session.jobs[name].slots)
    if held is None:
        return
    yield from returned(held, monitor, log)
    yield OnSession(lambda: monitor.recorder.apply(_write_slots, name, held, None))
    log.info("%s: gave back %d GPUs of pool %s", name, held.slots, held.pool)


def _write_slots(
    session: Session, name: str, before: HeldSlots | None, now: HeldSlots | None
) -> bool:
    """Write a job's slots down, unless they have changed meanwhile; False if they have."""
    job = session.jobs[name]
    if job.slots != before or (now is not None and not job.open_attempts):
        return False
    session.change_job(job, slots=now)
    return True


def keep(monitor: Monitor, log: Logger) -> Phases:
    """Renew the leases of the slots that jobs hold; take those that attempts in the queue lack.

    They lack them where a pool was away as they were submitted, where a lease has ended while
    nobody watched, and where they were taken over from elsewhere.
    """
    for name, held, wanted in (yield OnSession(lambda: _to_keep(monitor))):
        if not (yield from _keep_one(name, held, wanted, monitor, log)):
            return  # the others have the same answer, and wait as long for it


def _keep_one(
    name: str, held: HeldSlots | None, wanted: Wanted, monitor: Monitor, log: Logger
) -> Generator[Phase, Any, bool]:
    """Keep a job's slots, or take them; False where nobody answers."""
    work = monitor.worklist
    if work.pool is None:
        return False
    try:
        if held is not None and (yield Renewal(work.pool, held)):
            return True
        answer: HeldSlots | InUse = yield Taking(work.pool, wanted)
    except PoolUnavailable as error:
        away = error
        yield OnSession(lambda: _note(work, wanted.pool, away, log))
        return False
    yield OnSession(lambda: _note(work, wanted.pool, None, log))
    slots = answer if isinstance(answer, HeldSlots) else None
    is_written = yield OnSession(lambda: monitor.recorder.apply(_write_slots, name, held, slots))
    if slots is not None and not is_written:
        yield from returned(slots, monitor, log)  # it has ended meanwhile
    elif isinstance(answer, InUse) and held is not None:
        log.warning(
            "%s: its %d GPUs of pool %s went to others while nobody kept them (%d of %d in use): "
            "it goes on beside them",
            *(name, held.slots, held.pool, answer.used, answer.limit),
        )
    return True


def _to_keep(monitor: Monitor) -> list[tuple[str, HeldSlots | None, Wanted]]:
    found: list[tuple[str, HeldSlots | None, Wanted]] = []
    for name, job in monitor.session.jobs.items():
        if (held := job.slots) is not None:
            found.append((name, held, Wanted(held.pool, held.slots)))
        elif job.open_attempts and (wanted := job.wanted_slots) is not None:
            found.append((name, None, wanted))
    return found
