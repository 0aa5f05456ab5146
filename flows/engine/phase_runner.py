"""Runs the phases of steps and actions: writes on the session's thread, effects in threads.

What jobs wait for is done at once, and shown as a task run beside that: Prefect takes longer over a
task run than most effects do, and fifty of them at once would have every job wait for all.
"""

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any, cast

from prefect import State, Task
from prefect.context import TagsContext
from prefect.exceptions import PrefectSignal

from autoexp.flows.concurrency.children import Children, Updates
from autoexp.flows.concurrency.outbox import Outage, WriteSlot, is_prefect_error
from autoexp.flows.concurrency.turns import Precedence
from autoexp.flows.concurrency.writer import SessionWriter
from autoexp.operations.action_runs import CheckpointMark, CommandRun
from autoexp.operations.deletion import Measuring, Removal
from autoexp.operations.evidence.collection import Collection
from autoexp.operations.phases import (
    Effect,
    OnSession,
    Pause,
    Phase,
    Phases,
    ShownEffect,
    ShownOnSession,
    TryAgain,
    advance,
)
from autoexp.schedulers.base import Scheduler
from autoexp.tasks import effects

Mark = asyncio.Future[State[Any] | None]

_RUN_WITHIN_S = 60.0
"""How long what is shown waits for a job's run to begin: no job waits for it."""


class JobRun:
    """A job's run in Prefect: whether it has begun, and the context in which its tasks lie."""

    def __init__(self) -> None:
        self.context: contextvars.Context | None = None
        self._settled = asyncio.Event()

    def begin(self) -> None:
        """Note that it has begun: called inside of it."""
        self.context = contextvars.copy_context()
        self._settled.set()

    def end(self) -> None:
        """Note that it has ended, or will not begin."""
        self._settled.set()

    async def settled(self) -> None:
        """Wait until it has begun, or never will."""
        await self._settled.wait()


class JobRuns:
    """The runs of a session's jobs in Prefect."""

    def __init__(self) -> None:
        self._runs: dict[str, JobRun] = {}
        self._started: set[str] = set()
        self._is_over = False

    def start(self, job: str) -> JobRun:
        """The run that a job gets now, another one than before where it is tried again."""
        if job in self._started:
            self._runs[job] = JobRun()
        self._started.add(job)
        return self._run_of(job)

    async def all_settled(self, jobs: Iterable[str]) -> None:
        """Wait until the runs of those of these jobs that are started have begun, or never will."""
        await asyncio.gather(*[self._runs[job].settled() for job in jobs if job in self._started])

    def stop(self) -> None:
        """Wait for no run any longer: none begins from now on."""
        self._is_over = True
        for run in self._runs.values():
            run.end()

    async def context_of(self, job: str | None) -> contextvars.Context:
        """Where a task of a job belongs: its run, or that of the session where it has none soon."""
        context = None if job is None or self._is_over else await self._soon(self._run_of(job))
        # A copy: what one task run sets in its context is no other's.
        return contextvars.copy_context() if context is None else context.copy()

    async def _soon(self, run: JobRun) -> contextvars.Context | None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_RUN_WITHIN_S):
                await run.settled()
        return run.context

    def _run_of(self, job: str) -> JobRun:
        return self._runs.setdefault(job, JobRun())


class PhaseRunner:
    """Runs steps and actions beside the loop."""

    def __init__(
        self,
        scheduler: Scheduler,
        writer: SessionWriter,
        updates: Updates,
        precedence: Precedence,
        outage: Outage,
        job_runs: JobRuns,
    ) -> None:
        self.marks: dict[str, Mark] = {}
        """The task run that stands for a job's checkpoint, by the job's name; None: not shown."""
        self._scheduler = scheduler
        self._writer = writer
        self._updates = updates
        self._precedence = precedence
        self._outage = outage
        self._job_runs = job_runs
        # One task run begins at a time: the loop is left to others in between.
        self._show_lock = asyncio.Lock()

    async def run(self, children: Children, phases: Phases) -> None:
        """Run phases to their end; what one raises is thrown into whoever yielded it."""
        answer: Any = None
        error: Exception | None = None
        while (phase := advance(phases, answer, error)) is not None:
            answer, error = None, None
            self._precedence.note_work()
            try:
                answer = await self._run(children, phase)
            except Exception as raised:
                error = TryAgain(str(raised)) if is_prefect_error(raised) else raised
            except PrefectSignal as signal:
                error = TryAgain(f"{type(signal).__name__}: {signal}")
            finally:
                self._precedence.note_work()

    async def _run(self, children: Children, phase: Phase) -> Any:
        match phase:
            case OnSession(call):
                return await self._writer.persist(call)
            case ShownOnSession(title, call):
                return await effects.request(title, self._written(call))
            case Pause(seconds):
                return await self._updates.pause(seconds)
            case CheckpointMark():
                mark: Mark = asyncio.get_running_loop().create_future()
                self.marks[phase.starts] = mark
                children.spawn(phase.title, self._mark(phase, mark))
                return None
            case CommandRun():
                command = effects.run_command.with_options(retries=phase.retries)
                return await self._updates.unless_interrupted(command(phase))
            case Removal() | Measuring() | Collection():
                part = effects.in_thread(phase, self._scheduler)
                return await self._updates.unless_interrupted(part)
        return await self._run_effect(children, phase)

    async def _run_effect(self, children: Children, effect: Effect) -> Any:
        if (task := effects.TASKS.get(type(effect))) is not None:
            return await task(effect, self._scheduler)
        under_way = asyncio.ensure_future(effects.in_thread(effect, self._scheduler))
        if (shown := effects.SHOWN.get(type(effect))) is not None:  # else nobody wants to see it
            showing = self._show_in_its_run(shown, cast(ShownEffect, effect), under_way)
            children.spawn(effect.title, showing)
        return await under_way

    async def _show_in_its_run(
        self, task: Task[..., Any], effect: ShownEffect, under_way: Awaitable[Any]
    ) -> None:
        async def show() -> None:
            # Of each task run with tags Prefect asks its server for limits, twice.
            with TagsContext(current_tags=set()):
                await self._show(task, effect.title, under_way)

        context = await self._job_runs.context_of(effect.job)
        await asyncio.get_running_loop().create_task(show(), context=context)

    async def _mark(self, phase: CheckpointMark, mark: Mark) -> None:
        done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        done.set_result(phase.run(self._scheduler))
        try:
            mark.set_result(await self._show(effects.SHOWN[CheckpointMark], phase.title, done))
        finally:
            if not mark.done():
                mark.set_result(None)

    async def _show(
        self, task: Task[..., Any], title: str, under_way: Awaitable[Any]
    ) -> State[Any] | None:
        """Show an effect as a task run; None where Prefect did not accept it."""
        slot, since = WriteSlot(self._show_lock), time.monotonic()

        async def outcome() -> Any:
            slot.release()  # however long the effect takes, others are shown
            return await under_way

        await slot.acquire()
        try:
            await self._precedence.yield_to_work(since)
            shown: Any = task(title, outcome, return_state=True)
            state: State[Any] = await shown
        except (Exception, PrefectSignal) as error:
            self._outage.note_refused(f"`{title}`", error)
            return None
        finally:
            slot.release()
        return state

    def _written(self, call: Callable[[], str]) -> Callable[[], Awaitable[str]]:
        async def written() -> str:
            return await self._writer.persist(call)

        return written
