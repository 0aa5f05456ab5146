"""One session inside one flow run: look, decide, spawn, publish, sleep.

The loop awaits nothing that can take long: steps and actions run beside it, and whatever one of
them raises ends nobody else. Only values come back from the session's thread: nothing here reads a
record while that thread may change it.
"""

import asyncio
import logging
import sys
import time
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from prefect.runtime import flow_run

from autoexp.errors import SessionHeld
from autoexp.flows.concurrency import memory
from autoexp.flows.concurrency.children import Children, Updates
from autoexp.flows.concurrency.foreground import foreground
from autoexp.flows.concurrency.gpu_pool import PrefectPool, SlotKeeper
from autoexp.flows.concurrency.outbox import PrefectOutbox
from autoexp.flows.concurrency.turns import Precedence, Turns
from autoexp.flows.concurrency.visits import Visits
from autoexp.flows.concurrency.writer import SessionWriter
from autoexp.flows.engine.cancellation import CancellationWatcher
from autoexp.flows.engine.condition_checker import ConditionChecker
from autoexp.flows.engine.phase_runner import JobRuns, PhaseRunner
from autoexp.flows.engine.poller import SchedulerPoller
from autoexp.flows.engine.subflows import Subflows
from autoexp.flows.engine.vigil import Found, Limits, Vigil
from autoexp.flows.publishing import posted_events
from autoexp.flows.publishing.artifacts import ArtifactPublisher
from autoexp.flows.publishing.heartbeat import Heartbeat
from autoexp.flows.publishing.job_logs import JobLogs
from autoexp.flows.publishing.log_lines import LogLines
from autoexp.flows.publishing.trackers import Trackers
from autoexp.monitor import steps
from autoexp.monitor.job_watch import are_calm
from autoexp.monitor.monitor import Look, Monitor
from autoexp.monitor.worklist import Work
from autoexp.operations import action_runs, requests
from autoexp.operations.slots import holding
from autoexp.operations.step_runs import carry_out, named
from autoexp.rules.actions import Delete, Measure, Start
from autoexp.rules.describe import describe
from autoexp.schedulers.base import JobStatus, Scheduler
from autoexp.session.action_records import ActionRecord
from autoexp.session.inbox import has_requests, left_behind
from autoexp.session.session import Session
from autoexp.states import Verdict
from autoexp.storage.lease import Lease

# Each call into the system has a thread wait this long for the interpreter while the loop computes:
# a record takes eight, and Python's own 5 ms would make 40 ms of each.
_SWITCH_S = 0.0005
_THREADS = 64
# Jobs that are started, and that are submitted, at once; one that hangs holds its place this long.
_AT_ONCE = 4
_LONGEST_TURN_S = 1.0
_RETRY_S = 5.0
_LAST_EVENTS_S = 10.0
_REST = 0.25  # of the time of a look that left something to read
_NOTHING = Work([], [], [], has_conditions=False, is_over=False)
_NOTHING_FOUND = Found(Look([], [], set()), _NOTHING, [], None, is_calm=False)


class SessionRun:
    """A session being watched."""

    def __init__(
        self, session: Session, lease: Lease, scheduler: Scheduler, log: "logging.Logger | Any"
    ) -> None:
        self.session = session
        self.log = log
        self.updates = Updates()
        self._lease = lease
        self._writer = SessionWriter(session.path, self.updates, log)
        self._monitor = Monitor(session)
        self._monitor.worklist.pool = PrefectPool(flow_run.id)
        self._slots = SlotKeeper()
        outbox = PrefectOutbox(self.updates, log)
        outbox.outage.listen_to(logging.getLogger("prefect.flow_runs"))
        terminal = foreground()
        self._visits = Visits(terminal.visits if terminal else None, self.updates.mark_changed)
        self._log_lines = LogLines()
        self._job_logs = JobLogs()
        precedence = Precedence()
        self._artifacts = ArtifactPublisher(
            session, self._writer, outbox, self._visits, precedence, log
        )
        self._poller = SchedulerPoller(scheduler, session.experiment.slurm.scheduler_tick_s, log)
        job_runs = JobRuns()
        self._runner = PhaseRunner(
            scheduler, self._writer, self.updates, precedence, outbox.outage, job_runs
        )
        self._conditions = ConditionChecker(session, self._monitor, self._writer, self.updates, log)
        self._cancellations = CancellationWatcher(
            flow_run.id, self._visits, self._writer, self._monitor.recorder, log
        )
        self.vigil = Vigil(
            session,
            self._monitor,
            self.updates,
            lease,
            lambda: self._look_once({}, is_time_to_ask=False),
        )
        marks = self._runner.marks
        self._subflows = Subflows(
            self.updates,
            outbox,
            self._artifacts,
            self._cancellations,
            marks,
            job_runs,
            precedence,
            self._job_logs,
        )
        self._starts = Turns(_AT_ONCE, _LONGEST_TURN_S)
        self._submissions = Turns(_AT_ONCE, _LONGEST_TURN_S)
        self._disk = asyncio.Lock()
        self._heartbeat = Heartbeat(session.experiment.monitoring.heartbeat_url, log)
        self._trackers = Trackers(session.path, session.experiment.tracking, self.updates, log)
        self._families: dict[str, str] = {}
        self._has_more = False
        self._look_s = 0.0
        self._write_failures = 0
        self._inbox_fails = False

    async def run(self) -> None:
        """Watch the session until every job has its verdict, or until it is interrupted."""
        use_large_thread_pool()
        sys.setswitchinterval(_SWITCH_S)
        memory.use_one_arena()
        self._visits.listen()
        posted_events.begin()
        listening = asyncio.create_task(self._cancellations.listen())
        try:
            async with Children(self.log) as children:
                while not self.updates.is_over:
                    await self.tick(children)
                    await self._sleep(children)
                self.updates.end()
                self._subflows.stop()
            await self._flush()
            await self._trackers.close()
            for left in await self._writer.run(left_behind, self.session):
                self.log.warning("%s is left: it could neither be processed nor removed", left)
            is_interrupted = self.updates.interrupted is not None
            if await self._artifacts.close(is_interrupted=is_interrupted):
                await posted_events.all_are_posted(_LAST_EVENTS_S)
        finally:
            listening.cancel()
            self._visits.close()
            self._log_lines.close()
            self._job_logs.close()
            self._writer.close()

    async def tick(self, children: Children) -> None:
        """Look and decide, spawn what follows, publish."""
        # An answer of the scheduler is used once it comes, and never awaited.
        answers, has_answered = self._poller.collect(), self._poller.take_answered()
        looking = self._writer.run(self._look_once, answers, self._poller.is_due)
        found = await self._seen(looking, answers)
        if found is not None and has_answered:
            self._heartbeat.beat(children)
        self._process(children, found or _NOTHING_FOUND)

    def _process(self, children: Children, found: Found) -> None:
        """Log what a look has found, spawn what follows, publish."""
        for note in found.notes:
            self.log.info(note)
        for event in found.look.events:
            about = [event.job] if event.job in self.session.jobs else []
            self._job_logs.beside(about, self.log).info("%s", describe(event))
        for warning in found.look.warnings:
            self.log.warning(warning)
        if found.refs is not None:
            self._poller.poll(children, found.refs, is_calm=found.is_calm)
        self._has_more = found.look.has_more
        self._spawn(children, found.work)
        self._artifacts.note(found.look)
        self._trackers.note(found.look.changed)
        self._attend_to_prefect(children)
        self._trackers.send_if_due(children)
        self._slots.keep_if_due(children, lambda: self._keep_slots(children))

    def _attend_to_prefect(self, children: Children) -> None:
        self._artifacts.publish_if_due(children)
        self._cancellations.poll_if_due(children)

    async def _keep_slots(self, children: Children) -> None:
        await self._runner.run(children, holding.keep(self._monitor, self.log))

    async def _flush(self) -> None:
        try:
            await self._writer.run(self._monitor.flush)
        except OSError as error:
            self.log.warning(
                "could not flush the last metrics (%s); they will be re-read on resume", error
            )

    # Look

    def _look_once(self, answers: dict[str, JobStatus], is_time_to_ask: bool) -> Found:
        """Requests, look and next work in one call on the session's thread: each switch costs."""
        self.vigil.note_look()
        began = time.monotonic()
        self._lease.beat()
        notes = self._take_requests()
        look = self._monitor.look(answers)
        refs = self._monitor.refs() if is_time_to_ask else None
        jobs, watches = self.session.jobs.values(), self._monitor.watches
        is_calm = is_time_to_ask and are_calm(jobs, watches)
        found = Found(look, self._monitor.worklist.next_work(), notes, refs, is_calm)
        self._look_s = time.monotonic() - began
        return found

    def _take_requests(self) -> list[str]:
        """Process requests of other processes; returns a line for each."""
        try:
            # Seldom does one wait: the session is not locked for nothing at every look.
            waits = has_requests(self.session.path)
            notes = self._monitor.recorder.apply(requests.process_requests) if waits else []
        except OSError as error:
            if not self._inbox_fails:
                self.log.warning("%s: requests wait (%s)", self.session.path / "inbox", error)
            self._inbox_fails = True
            return []
        self._inbox_fails = False
        return notes

    async def _seen(
        self, looking: Awaitable[Found | None], answers: dict[str, JobStatus]
    ) -> Found | None:
        """What a look has found; None also where it failed."""
        try:
            found = await looking
        except SessionHeld as error:
            self.updates.interrupt(str(error))
            return None
        except Exception as error:
            self._note_write_failure(answers, error)
            return None
        if found is not None and self._write_failures:
            self.log.warning("written again after %d failures", self._write_failures)
            self._write_failures = 0
        return found

    def _note_write_failure(self, answers: dict[str, JobStatus], error: Exception) -> None:
        """Log what a look raised, and go on with the next one: jobs are running."""
        self._poller.give_back(answers)
        self._write_failures += 1
        if self._write_failures > 1:
            return
        if isinstance(error, OSError):
            self.log.warning(
                "%s: cannot write the session (%s); retrying", self.session.path, error
            )
        else:
            self.log.error("%s: a look failed; retrying", self.session.path, exc_info=error)

    # Spawn

    def _spawn(self, children: Children, work: Work) -> None:
        if work.is_over:
            self.updates.end()
        self._subflows.start_new(children, work.jobs)
        self._slots.note(work.jobs)
        self._families |= {job.spec.name: job.spec.parent or job.spec.name for job in work.jobs}
        for step in work.steps:
            children.spawn(named(step), self._run_step(children, step))
        for action in work.actions:
            children.spawn(f"action {action.key}", self._run_action(children, action))
        if work.has_conditions:
            self._conditions.start_check(children)

    async def _run_step(self, children: Children, step: steps.NextStep) -> None:
        log = self._job_logs.beside(step.jobs, self.log)
        try:
            async with self._turn_of(step):
                await self._runner.run(children, carry_out(step, self._monitor, log))
        except Exception as error:
            # Whatever it was: the job's next step is chosen again, after a while.
            await self._writer.persist(self._monitor.worklist.fail_step, step, str(error))
            raise

    def _turn_of(self, step: steps.NextStep) -> AbstractAsyncContextManager[None]:
        if not isinstance(step, steps.Submit):
            return nullcontext()
        return self._submissions.turn(self._families.get(step.jobs[0], step.jobs[0]))

    async def _run_action(self, children: Children, action: ActionRecord) -> None:
        job = action.action.job if isinstance(action.action, Start) else action.event.job
        log = self._job_logs.beside([job], self.log)
        phases = action_runs.carry_out(action, self._monitor, log)
        try:
            async with self._turn_of_action(action):
                await self._runner.run(children, phases)
        except Exception:
            await self.updates.pause(_RETRY_S)
            await self._writer.persist(self._monitor.worklist.end_action, action.key)
            raise

    def _turn_of_action(self, action: ActionRecord) -> AbstractAsyncContextManager[object]:
        match action.action:
            case Start():
                return self._starts.turn(action.event.job)
            case Delete() | Measure():
                return self._disk  # one at a time: a filesystem is shared
        # Commands of rules take long, and little of the loop: they need no turn.
        return nullcontext()

    # Sleep

    async def _sleep(self, children: Children) -> None:
        """Sleep until the loop has to look; what ends before may call for more, spawned at once."""
        self._rest()
        while not self.updates.is_over and time.monotonic() < self.vigil.next_at:
            if self.updates.take_changed():
                self._spawn(children, await self._next_work())
                self._attend_to_prefect(children)
                continue
            if found := await self._seen(self._stand(), {}):
                self._process(children, found)
                self._rest()
            if self._log_lines.rest_if_quiet(children):
                children.spawn("memory", asyncio.to_thread(memory.give_back))

    def _rest(self) -> None:
        tick = self.session.experiment.monitoring.file_tick_s
        if self._has_more:
            # A log that is behind is read on soon, without taking a whole core.
            tick = min(tick, self._look_s * _REST)
        self.vigil.next_at = time.monotonic() + tick

    async def _stand(self) -> Found | None:
        """Have the session's thread look by itself, until the loop has something to do."""
        is_well = self._write_failures == 0
        limits = Limits(
            may_look=is_well and not (self._poller.is_under_way or self._has_more),
            until=min(
                *(self._cancellations.due_at, self._artifacts.due_at, self._trackers.due_at),
                self._slots.due_at,
            ),
            numbers_at=self._artifacts.numbers_at,
            poll_at=lambda is_calm: self._poller.due_at(is_calm=is_calm),
        )
        found = await self._writer.stand(lambda: self.vigil.stand(limits), self.vigil.busy_s)
        if changed := self.vigil.take_changed():
            self._artifacts.note(Look([], [], changed))
            self._trackers.note(changed)
        return found

    async def _next_work(self) -> Work:
        try:
            return await self._writer.run(self._monitor.worklist.next_work, after_look=False)
        except Exception as error:
            self.log.error("cannot choose the next steps; retrying", exc_info=error)
            return _NOTHING


def use_large_thread_pool() -> None:
    """Use a larger default thread pool for blocking calls, as copies of checkpoints and sbatch.

    Python would run six at once on a machine of two cores, and the scheduler's answers behind them.
    """
    threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="effect")
    asyncio.get_running_loop().set_default_executor(threads)


def failed_jobs(session: Session) -> list[str]:
    """One line for each job that failed: which, why, and where its log is."""
    return [
        f"{job.spec.name}: {job.reason}" + (f". Read {job.attempt.log}" if job.attempt else "")
        for job in session.jobs.values()
        if job.verdict is Verdict.FAILED
    ]
