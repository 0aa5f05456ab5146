"""Checks conditions of waiting actions every tick, in a thread beside the loop."""

import asyncio
import logging
import time
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

from autoexp.flows.concurrency.children import Children, Updates
from autoexp.flows.concurrency.writer import SessionWriter
from autoexp.jobs.record import JobRecord
from autoexp.jobs.verdicts import has_begun, start_exception
from autoexp.model import now
from autoexp.monitor.monitor import Monitor
from autoexp.monitor.template_values import values_of
from autoexp.operations import actions
from autoexp.operations.action_runs import CommandRun
from autoexp.rules.condition_checks import Answer, Checked, Facts, JobFacts, check_all
from autoexp.rules.conditions import CommandTest, commands_in
from autoexp.rules.durations import spoken
from autoexp.rules.event_values import captured
from autoexp.rules.events import CheckpointComplete
from autoexp.session.action_records import ActionRecord, ActionStatus
from autoexp.session.session import Session
from autoexp.tasks import effects
from autoexp.templates import fill


class _Waiting(NamedTuple):
    """A copy of a waiting action, and the facts for its conditions."""

    action: ActionRecord
    facts: Facts


class ConditionChecker:
    """Checks conditions; nothing here is awaited by the loop."""

    def __init__(
        self, session: Session, monitor: Monitor, writer: SessionWriter, updates: Updates, log: Any
    ) -> None:
        self._session = session
        self._monitor = monitor
        self._writer = writer
        self._updates = updates
        self._log: logging.Logger = log
        self._checking = False
        self._commands: dict[tuple[str, ...], tuple[float, bool | None]] = {}
        """By action and arguments: when it was last started, if it succeeded; None: it runs."""

    def start_check(self, children: Children) -> None:
        """Check all waiting actions, unless a check is under way."""
        if not self._checking:
            self._checking = True
            children.spawn("conditions", self._check(children))

    async def _check(self, children: Children) -> None:
        try:
            waiting = await self._writer.run(self._facts)
            for each, checked in await asyncio.to_thread(_answers, waiting):
                await self._process(each.action, checked)
            for each in waiting:
                for condition in each.action.when:
                    for command in commands_in(condition):
                        self._run_if_due(children, each, command)
        except Exception as error:
            self._log.warning("conditions could not be checked: %s; retrying", error)
        finally:
            self._checking = False

    def _facts(self) -> list[_Waiting]:
        """Copy the waiting actions and the current facts; runs on the session's thread."""
        session = self._session
        jobs = {
            name: JobFacts(job.state, None if job.verdict is None else str(job.verdict))
            for name, job in session.jobs.items()
        }
        return [
            _Waiting(action, self._facts_of(action, jobs))
            for action in self._monitor.worklist.waiting_actions()
        ]

    def _facts_of(self, action: ActionRecord, jobs: dict[str, JobFacts]) -> Facts:
        session = self._session
        values = values_of(action.event, action.rule, session)
        job = session.jobs.get(action.event.job)

        def last_answer(command: CommandTest) -> bool | None:
            arguments = tuple(fill(argument, values) for argument in command.run)
            return self._commands.get((action.key, *arguments), (0.0, None))[1]

        # A checkpoint's folder was found by a scan, wherever the trainer saves.
        is_found = isinstance(action.event, CheckpointComplete)
        outside = set() if is_found else captured(action.event, values)
        return Facts(
            now=now(),
            asked_at=action.asked_at,
            acted_at=session.actions.last_done(action.rule, action.event.job),
            values=values,
            attempts=sum(not each.sick_nodes for each in job.attempts) if job else 0,
            attempts_without_progress=job.attempts_without_progress if job else 0,
            jobs=jobs,
            directory=session.path,
            commands=last_answer,
            start_exception=partial(start_exception, *_start_of(action, job)),
            captured=frozenset(outside),
        )

    async def _process(self, action: ActionRecord, checked: Checked) -> None:
        if checked.answer is Answer.HOLDS:
            await self._writer.persist(self._monitor.worklist.conditions_hold, action.key)
        elif checked.answer is Answer.NEVER:
            await self._give_up(action, checked.reason)
        elif now() > action.asked_at + timedelta(seconds=action.within_s):
            late = f"not within {spoken(action.within_s)}: {checked.reason}"
            await self._give_up(action, late)
        elif action.reason != checked.reason:
            await self._writer.persist(self._change, actions.wait, action.key, checked.reason)

    async def _give_up(self, action: ActionRecord, reason: str) -> None:
        self._log.info("gave up action %s: %s", action.key, reason)
        await self._writer.persist(self._change, actions.fail, action.key, f"not done: {reason}")

    def _change(self, write: Any, key: str, reason: str) -> None:
        action = self._session.actions[key]
        if action.status is ActionStatus.PENDING:  # it may have been dropped since
            self._monitor.recorder.apply(write, action, reason)

    def _run_if_due(self, children: Children, waiting: _Waiting, command: CommandTest) -> None:
        arguments = tuple(fill(argument, waiting.facts.values) for argument in command.run)
        key = (waiting.action.key, *arguments)
        begun_at, succeeded = self._commands.get(key, (0.0, False))
        due = time.monotonic() - begun_at >= command.every
        if key in self._commands and (succeeded or succeeded is None or not due):
            return
        self._commands[key] = (time.monotonic(), None)
        children.spawn(f"condition {waiting.action.key}", self._run(key, command))

    async def _run(self, key: tuple[str, ...], command: CommandTest) -> None:
        arguments, succeeded = key[1:], True
        try:
            effect = CommandRun(arguments, self._session.path, {}, command.timeout)
            await self._updates.unless_interrupted(effects.run_command(effect))
        except Exception as error:
            self._log.debug("`%s` does not hold yet: %s", " ".join(arguments), error)
            succeeded = False
        self._commands[key] = (time.monotonic(), succeeded)


def _start_of(action: ActionRecord, job: JobRecord | None) -> tuple[bool, str | None]:
    """Whether a job has begun to train, and the log of the attempt that an action is about."""
    if job is None:
        return True, None
    number = action.attempt or getattr(action.event, "attempt", None)
    about = [attempt for attempt in job.attempts if attempt.number == number]
    attempt = about[0] if about else job.attempt
    return has_begun(job), None if attempt is None else attempt.log


def _answers(waiting: Sequence[_Waiting]) -> list[tuple[_Waiting, Checked]]:
    answers = []
    for each in waiting:
        try:
            checked = check_all(each.action.when, each.facts)
        except Exception as error:
            # The others are still checked; this one has until `within` is over.
            checked = Checked(Answer.NOT_YET, f"cannot be checked: {error}")
        answers.append((each, checked))
    return answers
