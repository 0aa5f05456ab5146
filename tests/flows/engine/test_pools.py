"""One pool of GPUs for two sessions, counted by a real Prefect server."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from prefect import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from autoexp.flows.concurrency import gpu_pool
from autoexp.flows.concurrency.gpu_pool import PrefectPool
from autoexp.flows.deployment import server
from autoexp.flows.train import train
from autoexp.resources.pools import HeldSlots, InUse, PoolUnavailable, Wanted
from autoexp.session.session import Session
from tests.flows.own_server import Own
from tests.flows.prefect_home import prefect_home
from tests.flows.runs import artifacts, subflows
from tests.flows.sessions import Make, hold_back
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.prefect

GPUS = 4


@pytest.fixture
async def pool() -> AsyncIterator[str]:
    """A pool of six GPUs, which no other test knows."""
    name = f"group-{uuid4().hex[:8]}"
    await make(name, 6)
    yield name


async def make(name: str, limit: int) -> None:
    async with get_client() as client:
        made = GlobalConcurrencyLimitCreate(name=name, limit=limit)
        await client.create_global_concurrency_limit(made)


async def used(name: str) -> int:
    async with get_client() as client:
        return int((await client.read_global_concurrency_limit_by_name(name)).active_slots)


def of_pool(name: str) -> tuple[str, ...]:
    return (f"slurm.gpus_per_node={GPUS}", f"slurm.budget_pool={name}", "cooldowns=[]")


def reason(path: Path) -> str | None:
    return Session.load(path).jobs["demo"].waits_for_slots


async def test_a_second_session_waits_until_the_first_has_given_its_gpus_back(
    make_session: Make, pool: str
) -> None:
    first, second = make_session(*of_pool(pool)), make_session(*of_pool(pool))
    may_go = hold_back(first)
    runs = [asyncio.create_task(train(session=first.name, return_state=True))]  # type: ignore[var-annotated, arg-type]
    deadline = time.monotonic() + PATIENCE_S
    while not Session.load(first).jobs["demo"].slots:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)
    assert await used(pool) == GPUS

    runs.append(asyncio.create_task(train(session=second.name, return_state=True)))  # type: ignore[arg-type]
    while reason(second) is None:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)

    why = f"waits for 4 GPUs of pool {pool} (4 of 6 in use)"
    assert reason(second) == why and Session.load(second).jobs["demo"].attempts == []
    # Its run in Prefect says so, by a state that people filter by, and so does the page.
    while (shown := await state_of(second)) != ("Waiting", why):
        assert time.monotonic() < deadline, shown
        await asyncio.sleep(0.5)
    page = {str(each.key): str(each.data) for each in await artifacts(Session.load(second))}
    assert f"waits for 4 GPUs of pool {pool}" in page[f"{second.name}-session"].replace("\\", "")
    may_go.touch()
    ended = await asyncio.wait_for(asyncio.gather(*runs), PATIENCE_S)
    assert [state.type.value for state in ended] == ["COMPLETED", "COMPLETED"]
    jobs = [Session.load(path).jobs["demo"] for path in (first, second)]
    assert [len(job.attempts) for job in jobs] == [1, 1] and not any(job.slots for job in jobs)
    over, begun = jobs[0].attempts[0].ended_at, jobs[1].attempts[0].submitted_at
    assert over is not None and begun is not None and over < begun
    assert await used(pool) == 0


async def state_of(path: Path) -> tuple[str | None, str | None] | None:
    session = Session.load(path)
    runs = await subflows(session) if session.meta.flow_run_ids else []
    state = runs[0].state if runs else None
    return (state.name, state.message) if state else None


@pytest.mark.parametrize("limit", [None, 2])
async def test_a_pool_that_is_not_there_or_too_small_is_told_before_anything_is_submitted(
    make_session: Make, limit: int | None
) -> None:
    name = f"none-{uuid4().hex[:8]}"
    if limit is not None:
        await make(name, limit)
    path = make_session(*of_pool(name))

    state = await train(session=path.name, return_state=True)  # type: ignore[var-annotated]

    assert state.is_failed() and name in (state.message or ""), state.message
    wanted = "prefect gcl create" if limit is None else "has 4 GPUs, and the pool"
    assert wanted in (state.message or "")
    assert Session.load(path).jobs["demo"].attempts == []


async def test_whoever_has_the_lease_keeps_the_slots_and_gives_them_back_once(pool: str) -> None:
    one, other = PrefectPool(str(uuid4())), PrefectPool(None)

    held = await asyncio.to_thread(one.take, Wanted(pool, GPUS))

    assert isinstance(held, HeldSlots)
    assert await asyncio.to_thread(other.take, Wanted(pool, GPUS)) == InUse(GPUS, 6)
    assert await asyncio.to_thread(other.take, Wanted(pool, 7)) == InUse(GPUS, 6)
    assert await asyncio.to_thread(other.renew, held)
    for _ in range(2):
        await asyncio.to_thread(other.give_back, held)
        assert await used(pool) == 0
    assert not await asyncio.to_thread(one.renew, held)
    with pytest.raises(PoolUnavailable, match="has no pool"):
        one.take(Wanted("nowhere", 1))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Own]:
    found = Own(prefect_home(tmp_path), monkeypatch)
    with temporary_settings({PREFECT_API_URL: found.url, PREFECT_API_AUTH_STRING: found.login}):
        yield found
    found.kill()


@pytest.mark.slow
async def test_leases_outlive_a_server_and_those_that_nobody_keeps_end(
    own: Own, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_pool, "LEASE_S", 60.0)  # Prefect takes no less
    await make("group", 6)
    pool = PrefectPool(None)
    kept = await asyncio.to_thread(pool.take, Wanted("group", 2))
    lost = await asyncio.to_thread(pool.take, Wanted("group", GPUS))
    assert isinstance(kept, HeldSlots) and isinstance(lost, HeldSlots)
    own.kill()
    with pytest.raises(PoolUnavailable, match="does not count"):
        pool.take(Wanted("group", 1))

    with server.bound_socket(urlsplit(own.url).port or 0) as bound:
        own.process = server.start_server(bound, own.login, tmp_path / "log")
    server.await_answer(lambda: None, own.url, own.login, "the server", tmp_path / "log")

    deadline = time.monotonic() + PATIENCE_S
    while await used("group") != 2:  # a monitor was killed that had the others
        assert time.monotonic() < deadline
        assert await asyncio.to_thread(pool.renew, kept)
        await asyncio.sleep(5)
    assert not await asyncio.to_thread(pool.renew, lost)
