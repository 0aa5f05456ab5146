"""Doing what rules ask for: each action beside the loop, once, as a task run or through a job."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from prefect import State

from autoexp import acting, durable, inbox, launching
from autoexp.events import CheckpointComplete
from autoexp.jobs import JobRecord, now
from autoexp.rules.actions import (
    Cancel,
    ExcludeNodes,
    Fail,
    Finish,
    Launch,
    Log,
    Publish,
    Restart,
    RunCommand,
    Start,
    WriteFile,
)
from autoexp.rules.records import ActionRecord, ActionStatus
from autoexp.rules.templates import fill
from autoexp.rules.values import values_of
from autoexp.schedulers.base import Scheduler
from autoexp.session import Session
from autoexp.write_targets import write_target
from flows.disk import Disk
from flows.news import News
from flows.sending import is_prefects_own
from flows.waiting import Waiting
from tasks import actions as effects
from tasks import jobs as job_effects

_RETRY_S = 5.0
_SHOWN = 60  # characters of a command in the run graph


class Performer:
    """Does the session's actions; whatever one raises becomes its recorded reason."""

    def __init__(
        self,
        session: Session,
        scheduler: Scheduler,
        disk: Disk,
        news: News,
        log: "logging.Logger | Any",
        drive: Callable[[asyncio.TaskGroup], None],
    ) -> None:
        self.marks: dict[str, State[Any]] = {}
        """The task run that stands for a job's checkpoint, by the job's name."""
        self._session = session
        self._scheduler = scheduler
        self._disk = disk
        self._news = news
        self._log = log
        self._drive = drive
        self._performing: set[str] = set()
        self._starting: set[str] = set()
        self._waiting = Waiting(session, disk, news, log)
        # Hydra keeps what it composes from in one place of the process.
        self._composing = asyncio.Lock()

    def perform(self, children: asyncio.TaskGroup) -> None:
        """Begin what can be begun; what has conditions is looked at beside the loop."""
        waiting = []
        for action in self._session.pending_actions():
            if action.key in self._performing:
                continue
            if action.when and action.status is ActionStatus.PENDING:
                waiting.append(action)
            else:
                self._begin(children, action)
        for action in self._waiting.look(children, waiting):
            if action.status is ActionStatus.PENDING and action.key not in self._performing:
                self._begin(children, action)

    def _begin(self, children: asyncio.TaskGroup, action: ActionRecord) -> None:
        self._performing.add(action.key)
        if isinstance(action.action, Start):
            self._starting.add(action.key)
        children.create_task(self._perform(children, action))

    async def _perform(self, children: asyncio.TaskGroup, action: ActionRecord) -> None:
        try:
            job = await self._disk.persist(acting.begin, self._session, action)
            if isinstance(action.action, Start):
                assert job is not None
                await self._start(action, job)
            else:
                result = await self._do(action)
                await self._disk.persist(acting.done, self._session, action, result)
        except Exception as error:
            await self._note_failure(action, error)
        finally:
            self._performing.discard(action.key)
            self._starting.discard(action.key)
        # What was started is not to wait for the next look; what starts together goes together.
        if not self._starting:
            self._drive(children)

    async def _note_failure(self, action: ActionRecord, error: Exception) -> None:
        # A server that goes away in the middle of a task run must not cost a cooldown.
        untold = isinstance(action.action, Start) and is_prefects_own(error)
        if untold or (isinstance(error, OSError) and durable.is_passing(error)):
            self._log.warning("action %s: %s; trying again", action.key, error)
            await self._disk.persist(acting.postpone, self._session, action, str(error))
            await self._news.pause(_RETRY_S)
            return
        self._log.error("action %s failed: %s", action.key, error)
        output = error.output if isinstance(error, effects.CommandFailed) else None
        await self._disk.persist(acting.fail, self._session, action, str(error), output)

    async def _start(self, action: ActionRecord, job: JobRecord) -> None:
        event = action.event
        if isinstance(event, CheckpointComplete):
            mark: Any = job_effects.checkpoint(event.job, event.iteration, return_state=True)
            self.marks[job.spec.name] = await mark
            await job_effects.pin(event, job.spec, fresh=not job.launched)
        await self._disk.persist(acting.complete, self._session, action, job)

    async def _do(self, action: ActionRecord) -> str | None:
        """Do one action; returns what came of it."""
        values = values_of(action.event, action.rule, self._session)
        match action.action:
            case Log(message=message, level=level):
                return await effects.log(fill(message, values), level)
            case RunCommand():
                return await self._run_command(action.action, values)
            case Publish(name=name, payload=payload):
                filled = {key: fill(text, values) for key, text in payload.items()}
                await effects.publish(name, self._session.id, filled)
                await self._disk.persist(acting.publish, self._session, action, filled)
                return None
            case WriteFile(line=line):
                where = write_target(self._session, action, values)
                return await effects.write_file(where, fill(line, values))
            case Launch():
                return await self._launch(action, action.action, values)
            case Restart():
                said = await self._request(action, acting.ask_restart)
                await self._avoid_blamed()
                return said
            case Finish(reason=reason) | Fail(reason=reason):
                return await self._request(action, acting.ask_ending, fill(reason, values))
            case Cancel():
                return await self._request(action, acting.ask_cancel, values)
            case ExcludeNodes():
                said = await self._request(action, acting.exclude_nodes, values)
                await self._avoid_blamed()
                return said
        raise AssertionError(action.action)

    async def _request(self, action: ActionRecord, write: Any, *arguments: Any) -> str:
        what = f"{action.action.kind} {action.event.job}".strip()

        async def written() -> str:
            said: str = await self._disk.persist(write, self._session, action, *arguments)
            return said

        return await effects.request(what, written)

    async def _run_command(self, command: RunCommand, values: dict[str, str]) -> str:
        arguments = [fill(argument, values) for argument in command.run]
        effect = effects.run_command.with_options(retries=command.retries)
        return await self._news.unless_interrupted(
            effect(
                " ".join(arguments)[:_SHOWN],
                arguments,
                directory=self._session.path,
                environment={k: fill(text, values) for k, text in command.environment.items()},
                timeout_s=command.timeout,
            )
        )

    async def _launch(self, action: ActionRecord, launch: Launch, values: dict[str, str]) -> str:
        async with self._composing:
            jobs = await asyncio.to_thread(
                launching.launched_jobs, self._session, action, launch, values
            )
        request = inbox.SubmitRequest(jobs=jobs, by=f"rule {action.rule}")

        async def written() -> str:
            return await self._disk.persist(inbox.add_jobs, self._session, request)

        return await effects.request(f"launch {jobs[0].name}", written)

    async def _avoid_blamed(self) -> None:
        """Pending jobs of the session start elsewhere than on nodes that are blamed."""
        nodes = self._session.blame.current(now())
        tickets = [
            self._session.ticket(attempt)
            for job in self._session.jobs.values()
            for attempt in job.open_attempts
            if attempt.job_id is not None and attempt.state == "PENDING"
        ]
        if nodes and tickets:
            await effects.avoid(self._scheduler, tickets, nodes)
