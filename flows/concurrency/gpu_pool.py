"""GPU slots of a pool, counted by Prefect's global concurrency limits with leases.

A lease ends by itself unless it is renewed, and the server then gives its slots back. Half an hour
is longer than automations take to resume a session that died.
"""

import math
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any
from uuid import UUID

from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import ConcurrencyLeaseHolder
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from autoexp import sinks
from autoexp.errors import BadInput
from autoexp.flows.concurrency.children import Children
from autoexp.monitor.worklist import JobView
from autoexp.resources.pools import HeldSlots, InUse, PoolUnavailable, Wanted
from autoexp.session.session import Session

LEASE_S = 1800.0
_RENEWALS = 3
"""How often a lease is renewed in its time."""
_ANSWERS_WITHIN_S = 10.0
_MOST_RETRIES = 4
_FULL = (HTTPStatus.LOCKED, HTTPStatus.UNPROCESSABLE_ENTITY)


class PrefectPool:
    """Pools as global concurrency limits of the server of a flow run; for threads."""

    def __init__(self, flow_run_id: str | None) -> None:
        self._holder = (
            ConcurrencyLeaseHolder(type="flow_run", id=UUID(flow_run_id)) if flow_run_id else None
        )

    def take(self, wanted: Wanted) -> HeldSlots | InUse:
        """Take slots, all of them or none; raises PoolUnavailable."""
        with _asked() as client:
            try:
                answer = client.increment_concurrency_slots_with_lease(
                    [wanted.pool],
                    wanted.slots,
                    mode="concurrency",
                    lease_duration=LEASE_S,
                    holder=self._holder,
                )
            except PrefectHTTPStatusError as error:
                if error.response.status_code not in _FULL:
                    raise
                known = client.read_global_concurrency_limit_by_name(wanted.pool)
                return InUse(known.active_slots, known.limit)
            given = answer.json()
            held = HeldSlots(pool=wanted.pool, slots=wanted.slots, lease=given["lease_id"])
            if not given["limits"]:
                raise PoolUnavailable(_missing(wanted.pool))
            return held

    def renew(self, held: HeldSlots) -> bool:
        """Keep slots for longer; False once they are lost. Raises PoolUnavailable."""
        with _asked() as client:
            try:
                client.renew_concurrency_lease(UUID(held.lease), LEASE_S)
            except PrefectHTTPStatusError as error:
                if error.response.status_code in (HTTPStatus.GONE, HTTPStatus.NOT_FOUND):
                    return False
                raise
        return True

    def give_back(self, held: HeldSlots) -> None:
        """Give slots back; raises PoolUnavailable."""
        with _asked() as client:
            client.release_concurrency_slots_with_lease(UUID(held.lease))


def refuse_misfit(session: Session) -> None:
    """Raise BadInput for a pool that is not there, or too small for a job of the session.

    Only before anything is submitted: what runs goes on without its pool.
    """
    if any(job.attempts for job in session.jobs.values()):
        return
    wanted = {
        job.wanted_slots: name for name, job in session.jobs.items() if job.wanted_slots is not None
    }
    for each, name in wanted.items():
        try:
            with _asked() as client:
                limit = client.read_global_concurrency_limit_by_name(each.pool).limit
        except _Missing as error:
            raise BadInput(
                f"{_missing(each.pool)}, or go without (`slurm.budget_pool=null`)"
            ) from error
        except PoolUnavailable:
            return  # jobs are submitted as ever, and that is said then
        if limit < each.slots:
            raise BadInput(
                f"{name} has {each.slots} GPUs, and the pool {each.pool} has {limit}: "
                f"`prefect gcl update {each.pool} --limit N`, or fewer GPUs"
            )


class _Missing(PoolUnavailable):
    """The server has no such pool."""


def _missing(pool: str) -> str:
    return (
        f"Prefect's server has no pool {pool}: make it (`prefect gcl create {pool} --limit GPUS`)"
    )


@contextmanager
def _asked() -> Iterator[SyncPrefectClient]:
    """A client that asks for a few seconds; whatever else comes of it is PoolUnavailable.

    A server whose database is locked for a moment (a 503) is asked again by Prefect's client: it is
    busy, not away. A call that was heard and not answered may take slots twice; those of the first
    end with their lease.
    """
    try:
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: _MOST_RETRIES}),
            get_client(httpx_settings={"timeout": _ANSWERS_WITHIN_S}, sync_client=True) as client,
        ):
            yield client
    except PoolUnavailable:
        raise
    except ObjectNotFound as error:
        raise _Missing("the server has no such pool") from error
    except Exception as error:
        # Another server's page, a proxy's refusal, no connection: nobody counts.
        what = sinks.terminal(f"{type(error).__name__}: {error}".splitlines()[0])
        raise PoolUnavailable(f"Prefect's server does not count ({what})") from error


class SlotKeeper:
    """When the leases of a session's slots are to be renewed; never where it has none."""

    def __init__(self) -> None:
        self.due_at = math.inf
        """By the monotonic clock."""

    def note(self, jobs: Iterable[JobView]) -> None:
        """Note jobs that have changed: the first that has a pool begins it."""
        if self.due_at == math.inf and any(job.spec.machine.budget_pool for job in jobs):
            self.due_at = 0.0

    def keep_if_due(
        self, children: Children, keep: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        """Renew in the background, if it is time."""
        if time.monotonic() >= self.due_at:
            self.due_at = time.monotonic() + LEASE_S / _RENEWALS
            children.spawn("slots of pools", keep())
