"""What a tick of the session flow costs, in calls. The seconds are `make bench`."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench import engine, worlds
from flows.disk import Disk
from flows.engine import make_room
from flows.train import train
from tests.flows.conftest import Make

pytestmark = pytest.mark.prefect


@pytest.mark.parametrize("jobs", [2, 12])
def test_an_idle_tick_asks_prefect_nothing_and_wakes_nobody(
    jobs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hops: list[str] = []
    original = Disk.run

    async def counted(disk: Disk, function: Callable[..., Any], *args: Any, **more: Any) -> Any:
        hops.append(function.__name__)
        return await original(disk, function, *args, **more)

    async def watch(run: engine.Still) -> int:
        async with asyncio.TaskGroup() as children:
            await engine.settle(run, children)
            number = run.news.number
            monkeypatch.setattr(Disk, "run", counted)
            monkeypatch.setattr("flows.face.get_client", None)
            monkeypatch.setattr("flows.wishes.get_client", None)
            for _ in range(3):
                await run.tick(children)
            engine.end(run)
        return run.news.number - number - 1  # the one that ends it

    with engine.watched(tmp_path, jobs) as (run, _):
        assert asyncio.run(watch(run)) == 0
    assert hops == ["_read_on"] * 3


def test_what_one_job_does_is_published_once(tmp_path: Path) -> None:
    async def watch(run: engine.Still) -> int:
        async with asyncio.TaskGroup() as children:
            await engine.settle(run, children)
            number = run.news.number
            job = next(iter(run.session.jobs.values()))
            worlds.grow(run.session, 5000, 1)
            engine.mute(run, children)
            await run.tick(children)
            assert job.iteration == 5000
            engine.end(run)
        return run.news.number - number - 1

    with engine.watched(tmp_path, 2) as (run, _):
        assert asyncio.run(watch(run)) == 1


def test_effects_that_take_long_do_not_hold_up_the_schedulers_answers(tmp_path: Path) -> None:
    done = threading.Event()

    async def answered(run: engine.Still) -> set[str]:
        make_room()
        async with asyncio.TaskGroup() as children:
            await engine.settle(run, children)
            for _ in range(20):
                children.create_task(asyncio.to_thread(done.wait))
            run._questions._next_at = 0.0
            run._questions.ask_if_due(children, run._monitor.tickets)
            for _ in range(3000):
                await asyncio.sleep(0.1)
                if answers := run._questions.collect():
                    break
            done.set()
            engine.end(run)
        return set(answers)

    with engine.watched(tmp_path, 2) as (run, _):
        assert len(asyncio.run(answered(run))) == 2


async def test_the_session_writes_to_its_server_in_turn(
    make_session: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_session()
    original = httpx.AsyncClient.send
    under_way: list[str] = []
    met: list[tuple[str, ...]] = []

    async def send(client: httpx.AsyncClient, request: httpx.Request, **more: Any) -> Any:
        # What Prefect itself sends beside, its log lines, is not ours to order.
        if request.method == "GET" or request.url.path.endswith(("/filter", "/logs/")):
            return await original(client, request, **more)
        under_way.append(request.url.path)
        if len(under_way) > 1:
            met.append(tuple(under_way))
        try:
            return await original(client, request, **more)
        finally:
            under_way.remove(request.url.path)

    monkeypatch.setattr(httpx.AsyncClient, "send", send)
    state = await train(session=path.name, return_state=True)  # type: ignore[var-annotated]
    assert state.is_completed(), state.message
    assert met == []
