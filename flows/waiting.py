"""Actions whose conditions do not hold yet: looked at every tick, in a thread beside the loop."""

import asyncio
import logging
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from autoexp import acting
from autoexp.jobs import now
from autoexp.rules.checking import Answer, Checked, Facts, JobFacts, check_all
from autoexp.rules.conditions import CommandTest, commands_in
from autoexp.rules.durations import spoken
from autoexp.rules.records import ActionRecord, ActionStatus
from autoexp.rules.templates import fill
from autoexp.rules.values import values_of
from autoexp.session import Session
from flows.disk import Disk
from flows.news import News
from tasks import actions as effects

_SHOWN = 60


class Waiting:
    """Checks conditions; nothing here is awaited by the loop."""

    def __init__(
        self, session: Session, disk: Disk, news: News, log: "logging.Logger | Any"
    ) -> None:
        self._session = session
        self._disk = disk
        self._news = news
        self._log = log
        self._checking = False
        self._ready: list[ActionRecord] = []
        self._commands: dict[tuple[str, ...], tuple[float, bool | None]] = {}
        """By action and arguments: when it was last begun, and what came of it; None: it runs."""

    def look(self, children: asyncio.TaskGroup, waiting: list[ActionRecord]) -> list[ActionRecord]:
        """Begin a check of all, unless one is under way; returns those found ready since."""
        ready, self._ready = self._ready, []
        found = {action.key for action in ready}
        if not self._checking:
            left = [action for action in waiting if action.key not in found]
            if left:
                self._checking = True
                children.create_task(self._check(children, left))
        return ready

    async def _check(self, children: asyncio.TaskGroup, waiting: list[ActionRecord]) -> None:
        try:
            for action, checked in await asyncio.to_thread(self._answers, waiting):
                await self._heed(action, checked)
            for action in waiting:
                for condition in action.when:
                    for command in commands_in(condition):
                        self._run_if_due(children, action, command)
        except Exception as error:
            self._log.warning("conditions could not be checked: %s; trying again", error)
        finally:
            self._checking = False

    def _answers(self, waiting: Sequence[ActionRecord]) -> list[tuple[ActionRecord, Checked]]:
        actions = list(self._session.actions.values())
        jobs = {
            name: JobFacts(job.state, None if job.verdict is None else str(job.verdict))
            for name, job in list(self._session.jobs.items())
        }
        acted: dict[tuple[str, str], datetime] = {}
        for action in actions:
            if action.status is ActionStatus.DONE:
                place = (action.rule, action.event.job)
                acted[place] = max(acted.get(place, action.updated_at), action.updated_at)
        answers = []
        for action in waiting:
            try:
                answers.append((action, check_all(action.when, self._facts(action, jobs, acted))))
            except OSError as error:
                answers.append((action, Checked(Answer.NOT_YET, f"cannot be checked: {error}")))
        return answers

    def _facts(
        self,
        action: ActionRecord,
        jobs: dict[str, JobFacts],
        acted: dict[tuple[str, str], datetime],
    ) -> Facts:
        values = values_of(action.event, action.rule, self._session)
        job = self._session.jobs.get(action.event.job)

        def last_answer(command: CommandTest) -> bool | None:
            arguments = tuple(fill(argument, values) for argument in command.run)
            return self._commands.get((action.key, *arguments), (0.0, None))[1]

        return Facts(
            now=now(),
            asked_at=action.asked_at,
            acted_at=acted.get((action.rule, action.event.job)),
            values=values,
            attempts=len(job.attempts) if job else 0,
            attempts_without_progress=job.attempts_without_progress if job else 0,
            jobs=jobs,
            directory=self._session.path,
            commands=last_answer,
        )

    async def _heed(self, action: ActionRecord, checked: Checked) -> None:
        if action.status is not ActionStatus.PENDING:
            return  # it was dropped meanwhile
        if checked.answer is Answer.HOLDS:
            self._ready.append(action)
        elif checked.answer is Answer.NEVER:
            await self._give_up(action, checked.reason)
        elif now() > action.asked_at + timedelta(seconds=action.within_s):
            late = f"not within {spoken(action.within_s)}: {checked.reason}"
            await self._give_up(action, late)
        else:
            await self._disk.persist(acting.wait, self._session, action, checked.reason)

    async def _give_up(self, action: ActionRecord, reason: str) -> None:
        self._log.info("action %s is not done: %s", action.key, reason)
        await self._disk.persist(acting.fail, self._session, action, f"not done: {reason}")

    def _run_if_due(
        self, children: asyncio.TaskGroup, action: ActionRecord, command: CommandTest
    ) -> None:
        values = values_of(action.event, action.rule, self._session)
        arguments = tuple(fill(argument, values) for argument in command.run)
        key = (action.key, *arguments)
        begun_at, succeeded = self._commands.get(key, (0.0, False))
        due = time.monotonic() - begun_at >= command.every
        if key in self._commands and (succeeded or succeeded is None or not due):
            return
        if action.status is ActionStatus.PENDING:
            self._commands[key] = (time.monotonic(), None)
            children.create_task(self._run(key, command))

    async def _run(self, key: tuple[str, ...], command: CommandTest) -> None:
        arguments, succeeded = key[1:], True
        try:
            await self._news.unless_interrupted(
                effects.run_command(
                    " ".join(arguments)[:_SHOWN],
                    arguments,
                    directory=self._session.path,
                    environment={},
                    timeout_s=command.timeout,
                )
            )
        except Exception as error:
            self._log.debug("`%s` does not hold yet: %s", " ".join(arguments), error)
            succeeded = False
        self._commands[key] = (time.monotonic(), succeeded)
