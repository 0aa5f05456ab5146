"""What a tick of the session flow costs, in calls. The seconds are `make bench`."""

import asyncio
import collections
import logging
import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from autoexp.flows.concurrency.children import Children, Updates
from autoexp.flows.concurrency.writer import SessionWriter
from autoexp.flows.engine.session_run import use_large_thread_pool
from autoexp.flows.engine.stillness import Stillness
from autoexp.flows.engine.subflows import Subflows
from autoexp.flows.train import train
from autoexp.monitor.worklist import JobView
from autoexp.rules.events import CheckpointDeleted
from autoexp.storage import removal
from autoexp.storage.removal import Part
from bench.cases import flow_tick
from bench.cases.reaction import set_tick
from bench.world import sessions
from bench.world.measure import counted_calls
from tests.flows.sessions import Make
from tests.patience import PATIENCE_S, until

pytestmark = pytest.mark.prefect


@pytest.mark.parametrize("jobs", [2, 12])
def test_an_idle_tick_asks_prefect_nothing_and_wakes_nobody(
    jobs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hops: list[str] = []
    original = SessionWriter.run

    async def counted(
        disk: SessionWriter, function: Callable[..., Any], *args: Any, **more: Any
    ) -> Any:
        hops.append(function.__name__)
        return await original(disk, function, *args, **more)

    async def watch(run: flow_tick.Still) -> bool:
        async with Children(run.log) as children:
            await flow_tick.settle(run, children)
            run.updates.take_changed()
            monkeypatch.setattr(SessionWriter, "run", counted)
            monkeypatch.setattr("autoexp.flows.publishing.artifacts.get_client", None)
            monkeypatch.setattr("autoexp.flows.engine.cancellation.get_client", None)
            for _ in range(3):
                await run.tick(children)
            changed = run.updates.take_changed()
            flow_tick.end(run)
        return changed

    with flow_tick.watched(tmp_path, jobs) as (run, _):
        assert not asyncio.run(watch(run))
    assert hops == ["_look_once"] * 3


UPKEEP = (
    "retention={keep: [branch_points, {last: 2}], budget: 15TB}",
    "nodes={check: gpu, avoid_file: AVOIDED}",
    "tracking={tensorboard: CURVES}",
    "monitoring.heartbeat_url=http://127.0.0.1:9/alive",
)


def calls_at_rest(
    folder: Path, jobs: int, *overrides: str
) -> tuple[collections.Counter[str], collections.Counter[str]]:
    """Calls of a tick of the session's thread at which nothing is new, and of a look at that."""

    async def watch(run: flow_tick.Still) -> None:
        async with Children(run.log) as children:
            await flow_tick.settle(run, children)
            for _ in range(3):  # the first ones find what to look at
                run.vigil._look_at_all()
            with counted_calls(python=True) as look:
                run.vigil._look_at_all()
            with counted_calls(python=True) as tick:
                assert not run.vigil._has_news()
            ticks.append((tick, look))
            flow_tick.end(run)

    ticks: list[tuple[collections.Counter[str], collections.Counter[str]]] = []
    folder.mkdir()
    still = "{still: {after: 6h, counts: progress, actions: [{log: {}}]}}"
    words = ("monitoring=production", f"monitoring.inactivity_events={still}")
    with flow_tick.watched(folder, jobs, *(words if overrides else words[:1]), *overrides) as found:
        asyncio.run(watch(found[0]))
    return ticks[0]


def test_upkeep_costs_an_idle_tick_nothing_and_a_look_ten_calls_for_each_job_in_memory(
    tmp_path: Path,
) -> None:
    words = [word.replace("AVOIDED", str(tmp_path / "nodes")) for word in UPKEEP]
    words = [word.replace("CURVES", str(tmp_path / "curves")) for word in words]
    for jobs in (2, 12):
        tick, look = calls_at_rest(tmp_path / f"without{jobs}", jobs)
        with_tick, with_look = calls_at_rest(tmp_path / f"with{jobs}", jobs, *words)
        assert with_tick == tick and tick["stat"] == 2 * jobs
        more = with_look - look
        assert 0 < more.total() <= 10 * (1 + jobs)
        assert not set(more) & {"stat", "open", "read", "pread", "scandir", "listdir", "write"}


def test_what_one_job_does_reaches_those_alone_who_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    start_new = Subflows.start_new

    def counted(subflows: Subflows, children: Children, changed: Sequence[JobView]) -> None:
        told.extend(job.spec.name for job in changed)
        start_new(subflows, children, changed)

    async def watch(run: flow_tick.Still) -> None:
        async with Children(run.log) as children:
            await flow_tick.settle(run, children)
            flow_tick.mute(run)
            await run.tick(children)  # sees what was saved
            first = next(iter(run.session.jobs.values()))
            sessions.grow_job(first, 5000, 1)
            monkeypatch.setattr(Subflows, "start_new", counted)
            for _ in range(3):
                await run.tick(children)
            assert first.iteration == 5000
            assert set(told) == {first.spec.name}
            flow_tick.end(run)

    with flow_tick.watched(tmp_path, 12) as (run, _):
        asyncio.run(watch(run))


def test_effects_that_take_long_do_not_hold_up_the_schedulers_answers(tmp_path: Path) -> None:
    done = threading.Event()

    async def answered(run: flow_tick.Still) -> set[str]:
        use_large_thread_pool()
        async with Children(run.log) as children:
            await flow_tick.settle(run, children)
            for _ in range(20):
                children.spawn("effect", asyncio.to_thread(done.wait))
            run._poller._next_at = 0.0
            run._poller.poll(children, run._monitor.refs())
            for _ in range(3000):
                await asyncio.sleep(0.1)
                if answers := run._poller.collect():
                    break
            done.set()
            flow_tick.end(run)
        return set(answers)

    with flow_tick.watched(tmp_path, 2) as (run, _):
        assert len(asyncio.run(answered(run))) == 2


def test_looks_go_on_while_a_checkpoint_of_ten_thousand_files_is_removed_or_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, parts = list[str](), list[Part]()

    def after_looks(path: Path, most: int) -> Part:
        # The filesystem does not answer the first part for long.
        enough = len(looks) + (1 if parts else 20)
        until(lambda: len(looks) >= enough, f"looks beside part {len(parts)} of a removal")
        parts.append(remove_part(path, most))
        return parts[-1]

    async def watch(run: flow_tick.Still) -> None:
        look_once = run._look_once
        monkeypatch.setattr(
            run, "_look_once", lambda *a, **k: looks.append("") or look_once(*a, **k)
        )
        async with Children(run.log) as children:
            flow_tick.mute(run)
            async with asyncio.timeout(PATIENCE_S):
                while not (gone := deleted(run)):
                    await run.tick(children)
                    await asyncio.sleep(0.01)
            flow_tick.end(run)
        assert [event.iteration for event in gone] == [100]
        assert gone[0].files == sum(part.files for part in parts) == 10_002

    def deleted(run: flow_tick.Still) -> list[CheckpointDeleted]:
        found = (entry.event for entry in run.session.journal.entries)
        return [event for event in found if isinstance(event, CheckpointDeleted)]

    remove_part = removal.remove_part
    monkeypatch.setattr(removal, "remove_part", after_looks)
    # Rules that roll back would have each checkpoint stay.
    words = ("monitoring=basic", "retention={keep: [{last: 2}]}")
    with flow_tick.watched(tmp_path, 1, *words) as (run, _):
        (job,) = run.session.jobs.values()
        job.there_before = []
        saved = Path(job.spec.save_dir, sessions.folder_name(100))
        for number in range(10_000):
            (saved / f"{number}.distcp").touch()
        asyncio.run(watch(run))
    assert len(parts) > 10_000 / 500
    assert not saved.exists() and not list(saved.parent.glob(".autoexp-*"))


async def test_the_session_writes_to_its_server_in_turn(
    make_session: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_session()
    original = httpx.AsyncClient.send
    under_way: list[str] = []
    met: list[tuple[str, ...]] = []

    async def send(client: httpx.AsyncClient, request: httpx.Request, **more: Any) -> Any:
        # What Prefect itself sends beside, its log lines and events, is not ours to order: the
        # server puts both into a queue of its own.
        if request.method == "GET" or request.url.path.endswith(("/filter", "/logs/", "/events")):
            return await original(client, request, **more)
        under_way.append(request.url.path)
        if len(under_way) > 1:
            met.append(tuple(under_way))
        try:
            return await original(client, request, **more)
        finally:
            under_way.remove(request.url.path)

    monkeypatch.setattr(httpx.AsyncClient, "send", send)
    # An end goes on out of turn where the server is away, which this one is not, however slow.
    monkeypatch.setattr("autoexp.flows.engine.subflows._END_WITHIN_S", PATIENCE_S)
    state = await train(session=path.name, return_state=True)  # type: ignore[var-annotated]
    assert state.is_completed(), state.message
    assert met == []


def test_a_session_that_waits_wakes_nobody_but_its_own_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, stats = list[str](), list[bool]()
    processed = list[int]()
    holds = Stillness.__dict__["holds"].fget

    def counted(stillness: Stillness) -> bool:
        stats.append(holds(stillness))
        return stats[-1]

    async def watch(run: flow_tick.Still) -> None:
        async with Children(run.log) as children:
            await flow_tick.settle(run, children)
            run.updates.take_changed()
            # The scheduler would be asked at once, were it not known that all is calm.
            monkeypatch.setattr(run._poller, "due_at", due_unless_calm)
            monkeypatch.setattr("autoexp.flows.engine.vigil.are_calm", lambda *_: True)
            monkeypatch.setattr(Stillness, "holds", property(counted))
            look_once = run._look_once
            monkeypatch.setattr(
                run, "_look_once", lambda *a, **k: looks.append("") or look_once(*a, **k)
            )
            monkeypatch.setattr(run, "_process", lambda _, found: processed.append(len(stats)))
            sleeping = asyncio.create_task(run._sleep(children))
            await until_async(lambda: stats.count(True) >= 5)
            # What the settling has saved is told once; from then on it is still.
            assert len(processed) <= 1 and len(looks) <= 4
            processed.clear()
            # Somebody wants the thread, or has changed something: the sleeper makes way at once.
            assert await run._writer.run(str) == ""
            first = next(iter(run.session.jobs.values()))
            sessions.save(Path(first.spec.save_dir), 900)
            await until_async(lambda: bool(processed))
            assert 900 in first.checkpoints
            flow_tick.end(run)
            await sleeping

    with flow_tick.watched(tmp_path, 2) as (run, _):
        set_tick(run, 0.05)
        asyncio.run(watch(run))


def due_unless_calm(*, is_calm: bool) -> float:
    return math.inf if is_calm else 0.0


async def until_async(condition: Callable[[], bool]) -> None:
    """Wait for a condition on the running loop."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_filesystem_that_hangs_while_the_thread_is_by_itself_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("autoexp.flows.concurrency.writer._PATIENCE_S", 0.05)
    answers, loop, busy = threading.Event(), asyncio.get_running_loop(), 1.0
    disk = SessionWriter(Path("/scratch/s1"), Updates(), logging.getLogger("standing"))
    standing = asyncio.create_task(disk.stand(answers.wait, lambda: busy))
    await until_async(lambda: bool(caplog.messages))
    loop.call_soon(answers.set)
    assert await standing
    disk.close()

    hangs, back = caplog.messages
    assert "/scratch/s1: the filesystem has not answered" in hangs
    assert "/scratch/s1: the filesystem answers again" in back
