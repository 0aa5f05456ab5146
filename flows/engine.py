"""One session inside one flow run: look, decide, act, publish, sleep.

The loop awaits nothing that can take long: actions and job stories run beside it as task runs and
subflows of the same flow run, and tell it nothing. Stories learn from the loop what happened.
"""

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prefect.runtime import flow_run

from autoexp import inbox
from autoexp.describing import describe
from autoexp.errors import SessionHeld
from autoexp.jobs import Verdict
from autoexp.lease import Lease
from autoexp.monitor import Look, Monitor
from autoexp.schedulers.base import Scheduler, Sighting, Ticket
from autoexp.session import Session
from flows.disk import Disk
from flows.drawing import Drawing
from flows.face import Face
from flows.news import News
from flows.performing import Performer
from flows.questions import Questions
from flows.sending import Sending
from flows.submitting import Submitter
from flows.wishes import Wishes
from tasks import jobs as effects

_AT_ONCE = 64


class SessionRun:
    """A session being watched."""

    def __init__(
        self, session: Session, lease: Lease, scheduler: Scheduler, log: "logging.Logger | Any"
    ) -> None:
        self.session = session
        self.log = log
        self.news = News()
        self.longest_gap = 0.0
        self._looked_at: float | None = None
        self._lease = lease
        self._scheduler = scheduler
        self._disk = Disk(session.path, self.news, log)
        self._monitor = Monitor(session)
        sending = Sending(self.news, log)
        self._face = Face(session, self._disk, sending, log)
        self._questions = Questions(scheduler, session.experiment.slurm.scheduler_tick_s, log)
        self._submitter = Submitter(session, scheduler, self._disk, self.news, log)
        self._performer = Performer(
            session, scheduler, self._disk, self.news, log, self._submitter.drive
        )
        self._wishes = Wishes(flow_run.id, log)
        marks = self._performer.marks
        self._drawing = Drawing(session, self.news, sending, self._face, self._wishes, marks, log)
        self._wishing: asyncio.Task[None] | None = None
        self._cancelling: set[str] = set()
        self._write_failures = 0
        self._inbox_fails = False

    async def run(self) -> None:
        """Watch the session until every job has its verdict, or until it is interrupted."""
        make_room()
        listening = asyncio.create_task(self._wishes.listen())
        try:
            async with asyncio.TaskGroup() as children:
                while not self._is_over():
                    await self.tick(children)
                    await self._sleep()
                self.news.publish(last=True)
            await self._flush()
            await self._face.close()
        finally:
            listening.cancel()
            self._disk.close()

    async def tick(self, children: asyncio.TaskGroup) -> None:
        """Look, decide, act, publish."""
        look = await self._look(children)
        self._act(children)
        self._face.offer(children, look)
        self._heed_wishes(children)
        if look.changed or look.events or look.actions or self.news.is_due:
            self.news.publish()

    def _is_over(self) -> bool:
        # A request that came at the last moment, or to a session that had ended, is heeded too.
        done = self.session.is_over and inbox.is_empty(self.session.path)
        return done or self.news.interrupted is not None

    async def _flush(self) -> None:
        try:
            await self._disk.run(self._monitor.flush)
        except OSError as error:
            self.log.warning("the last lines read are not written (%s): read again later", error)

    def _heed_wishes(self, children: asyncio.TaskGroup) -> None:
        if self._wishing is None and self._wishes.is_due:
            self._wishing = children.create_task(self._ask_for_wishes())

    async def _ask_for_wishes(self) -> None:
        jobs = await self._wishes.cancelled()
        if jobs is not None:
            who = "cancelled in Prefect"
            names = await self._disk.persist(inbox.request_cancel, self.session, tuple(jobs), who)
            if names:
                self.log.info("%s: %s", who, ", ".join(names))
        self._wishing = None

    # Look

    def _read_on(self, answers: dict[str, Sighting]) -> Look:
        """On the session's thread, in one go: each way there and back costs as much as a look."""
        self._lease.beat()
        self._take_requests()
        return self._monitor.look(answers)

    def _take_requests(self) -> None:
        try:
            notes = inbox.take_on(self.session)
        except OSError as error:
            if not self._inbox_fails:
                self.log.warning("%s: requests wait (%s)", self.session.path / "inbox", error)
            self._inbox_fails = True
            return
        self._inbox_fails = False
        for note in notes:
            self.news.stir()
            self.log.info(note)

    async def _look(self, children: asyncio.TaskGroup) -> Look:
        """Read what is new; the scheduler's answer is taken when it comes, and not waited for."""
        answers = self._questions.collect()
        self._questions.ask_if_due(children, self._monitor.tickets)
        self._note_gap()
        try:
            look = await self._disk.run(self._read_on, answers)
        except SessionHeld as error:
            self.news.interrupt(str(error))
            return Look([], [], set())
        except OSError as error:
            self._write_failures += 1
            self.news.stir()  # what was seen is known, though not yet on disk
            if self._write_failures == 1:
                self.log.warning("%s: cannot be written (%s); trying on", self.session.path, error)
            return Look([], [], set())
        if self._write_failures:
            self.log.warning("written again after %d failures", self._write_failures)
            self._write_failures = 0
        for event in look.events:
            self.log.info(describe(event))
        return look

    def _note_gap(self) -> None:
        """Remember the longest time between two looks: nothing may ever block them."""
        now = time.monotonic()
        if self._looked_at is not None:
            self.longest_gap = max(self.longest_gap, now - self._looked_at)
        self._looked_at = now

    # Act

    def _act(self, children: asyncio.TaskGroup) -> None:
        self._performer.perform(children)
        self._drawing.draw(children)
        self._submitter.drive(children)
        tickets = self._to_cancel()
        if tickets:
            children.create_task(self._cancel(tickets))

    def _to_cancel(self) -> list[Ticket]:
        """Attempts of jobs that are to end or to restart, and those queued ahead of ended ones."""
        return [
            self.session.ticket(attempt)
            for job in self.session.jobs.values()
            if job.is_ending
            for attempt in job.open_attempts
            if attempt.job_id is not None and attempt.key not in self._cancelling
        ]

    async def _cancel(self, tickets: list[Ticket]) -> None:
        self._cancelling |= {ticket.key for ticket in tickets}
        try:
            answers = await effects.cancel(self._scheduler, tickets)
        except Exception as error:
            self.log.warning("%d jobs not cancelled yet: %s; trying again", len(tickets), error)
            await self.news.pause(self.session.experiment.slurm.scheduler_tick_s)
            self._cancelling -= {ticket.key for ticket in tickets}
            return
        await self._disk.persist(self.session.record_answers, answers)
        for key, answer in answers.items():
            self.log.info("cancel %s: %s", key, answer)

    async def _sleep(self) -> None:
        if not self._is_over():
            await self.news.pause(self.session.experiment.monitoring.file_tick_s)


def make_room() -> None:
    """Let effects that take long wait side by side, as copies of checkpoints, and sbatch.

    Python would run six at once on a machine of two cores, and the scheduler's answers behind them.
    """
    threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="effect")
    asyncio.get_running_loop().set_default_executor(threads)


def failed_jobs(session: Session) -> list[str]:
    """One line for each job that failed: which, why, and where its log is."""
    return [
        f"{job.spec.name}: {job.reason}" + (f". Read {job.attempt.log}" if job.attempt else "")
        for job in session.jobs.values()
        if job.verdict is Verdict.FAILED
    ]
