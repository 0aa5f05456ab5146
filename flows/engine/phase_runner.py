"""Runs the phases of steps and actions: effects as tasks, writes on the session's thread."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from prefect import State
from prefect.exceptions import PrefectSignal

from autoexp.flows.concurrency.children import Updates
from autoexp.flows.concurrency.outbox import is_prefect_error
from autoexp.flows.concurrency.writer import SessionWriter
from autoexp.operations.action_runs import CheckpointMark, CommandRun
from autoexp.operations.phases import (
    Effect,
    OnSession,
    Pause,
    Phase,
    Phases,
    ShownOnSession,
    TryAgain,
    advance,
)
from autoexp.schedulers.base import Scheduler
from autoexp.tasks import effects


class PhaseRunner:
    """Runs steps and actions beside the loop."""

    def __init__(self, scheduler: Scheduler, writer: SessionWriter, updates: Updates) -> None:
        self.marks: dict[str, State[Any]] = {}
        """The task run that stands for a job's checkpoint, by the job's name."""
        self._scheduler = scheduler
        self._writer = writer
        self._updates = updates

    async def run(self, phases: Phases) -> None:
        """Run phases to their end; what one raises is thrown into whoever yielded it."""
        answer: Any = None
        error: Exception | None = None
        while (phase := advance(phases, answer, error)) is not None:
            answer, error = None, None
            try:
                answer = await self._run(phase)
            except Exception as raised:
                error = TryAgain(str(raised)) if is_prefect_error(raised) else raised
            except PrefectSignal as signal:
                error = TryAgain(f"{type(signal).__name__}: {signal}")

    async def _run(self, phase: Phase) -> Any:
        match phase:
            case OnSession(call):
                return await self._writer.persist(call)
            case ShownOnSession(title, call):
                return await effects.request(title, self._written(call))
            case Pause(seconds):
                return await self._updates.pause(seconds)
            case CheckpointMark():
                mark: Any = effects.TASKS[CheckpointMark](phase, self._scheduler, return_state=True)
                self.marks[phase.starts] = state = await mark
                return await state.aresult()
            case CommandRun():
                command = effects.run_command.with_options(retries=phase.retries)
                return await self._updates.unless_interrupted(command(phase))
        return await self._run_effect(phase)

    async def _run_effect(self, effect: Effect) -> Any:
        task = effects.TASKS.get(type(effect))
        if task is None:  # of no interest in the run graph
            return await asyncio.to_thread(effect.run, self._scheduler)
        return await task(effect, self._scheduler)

    def _written(self, call: Callable[[], str]) -> Callable[[], Awaitable[str]]:
        async def written() -> str:
            return await self._writer.persist(call)

        return written
