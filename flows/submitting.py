"""Submitting a session's jobs as often as it takes: one by one, or together as an array."""

import asyncio
import logging
import random
from pathlib import Path
from typing import Any

from autoexp import acting, arrays
from autoexp.changing import changed_spec
from autoexp.errors import AutoexpError, SubmissionRefused
from autoexp.jobs import Attempt, Ending, JobRecord, Verdict, now
from autoexp.limits import chain_length, room
from autoexp.schedulers.base import Scheduler
from autoexp.session import Session
from flows.disk import Disk
from flows.news import News
from tasks import actions
from tasks import jobs as effects

_LONGEST_RETRY_S = 300.0


class Submitter:
    """Brings jobs to the scheduler; what went wrong is tried again, never doubled."""

    def __init__(
        self,
        session: Session,
        scheduler: Scheduler,
        disk: Disk,
        news: News,
        log: "logging.Logger | Any",
    ) -> None:
        self._session = session
        self._scheduler = scheduler
        self._disk = disk
        self._news = news
        self._log = log
        self._driven: set[str] = set()
        self._tries: dict[str, int] = {}
        self._room: int | None = 0
        self._counted_at = -1

    def drive(self, children: asyncio.TaskGroup) -> None:
        """See to it that every launched job is submitted, now and whenever the monitor wants."""
        jobs = [
            job
            for job in self._session.jobs.values()
            if job.launched
            and (not job.is_over or job.unsubmitted is not None)
            and job.spec.name not in self._driven
        ]
        if jobs:
            self._driven |= {job.spec.name for job in jobs}
            children.create_task(self._drive_all(children, jobs))

    async def _drive_all(self, children: asyncio.TaskGroup, jobs: list[JobRecord]) -> None:
        longest = 1
        if len(jobs) > 1:
            longest = await self._longest_array()
        for group in arrays.groups(jobs, longest):
            if len(group) > 1 or _begun_as_array(group[0]):
                children.create_task(self._drive_array(group))
            else:
                children.create_task(self._drive(group[0]))

    async def _longest_array(self) -> int:
        try:
            return await asyncio.to_thread(self._scheduler.longest_array)
        except Exception as error:
            self._log.warning("the longest array is not known (%s); jobs go one by one", error)
            return 1

    async def _drive_array(self, group: arrays.Group) -> None:
        """Submit jobs together the first time; what comes later is each job's own."""
        fresh = not _begun_as_array(group[0])
        joining = group
        if fresh:
            joining = await self._disk.persist(arrays.begin, self._session, group)
        while self._news.interrupted is None:
            # Those that are cancelled meanwhile are each looked up, or withdrawn.
            joining = [job for job in joining if not job.is_ending]
            if not joining or await self._submit_array(joining, fresh=fresh):
                break
            fresh = False
        await asyncio.gather(*(self._drive(job) for job in group))

    async def _submit_array(self, joining: arrays.Group, *, fresh: bool) -> bool:
        """Whether the array is settled: in the queue, or refused for good."""
        name = joining[0].attempts[-1].name
        try:
            job_ids = await effects.submit_array(
                self._session, joining, self._scheduler, name=name, fresh=fresh
            )
        except SubmissionRefused as error:
            self._log.error("%s: refused: %s", name, error)
            for job in joining:
                await self._disk.persist(self._session.refuse, job, job.attempts[-1], str(error))
            return True
        except Exception as error:
            await self._wait_before_retry(name, error)
            return False
        for job, job_id in zip(joining, job_ids, strict=True):
            attempt = job.attempts[-1]
            await self._disk.persist(self._session.record_submission, job, attempt, job_id)
        self._log.info("%s: submitted %d jobs as array %s", name, len(joining), job_ids[0])
        return True

    async def _drive(self, job: JobRecord) -> None:
        """Submit a job whenever the monitor wants it, until it is over."""
        while self._news.interrupted is None and not (job.is_over and job.unsubmitted is None):
            if job.may_be_replaced:
                await self._replace(job)
            elif job.unsubmitted is not None and job.is_ending:
                await self._withdraw(job, job.unsubmitted)
            elif job.unsubmitted is not None:
                await self._submit(job, job.unsubmitted, fresh=False)
            elif attempt := await self._begin(job):
                await self._submit(job, attempt, fresh=True)
                continue
            await self._news.next()
        # Somebody may ask for it to be run again.
        self._driven.discard(job.spec.name)

    async def _begin(self, job: JobRecord) -> Attempt | None:
        """Intend another attempt, once what a killed save has left is out of its way."""
        if not self._has_turn(job):
            return None
        if job.attempts and not job.open_attempts and job.wants_attempt():
            save_dir = Path(job.spec.save_dir)
            for name in await self._disk.persist(job.spec.trainer.clear_torn, save_dir):
                self._log.warning("%s: %s is torn, and was moved aside", job.spec.title, name)
        return await self._disk.persist(self._session.begin_attempt, job)

    def _has_turn(self, job: JobRecord) -> bool:
        """Whether to try and begin an attempt now; no more jobs try at once than there is room for.

        A thousand that wait would each count all others, and go through the session's thread.
        """
        if not job.wants_attempt(chain_length(job)):
            return False
        if self._counted_at != self._news.number:
            jobs = self._session.jobs.values()
            self._counted_at = self._news.number
            self._room = room(self._session.experiment, jobs)
        if self._room is None:
            return True
        self._room -= 1
        return self._room >= 0

    async def _replace(self, job: JobRecord) -> None:
        """The last steps of a restart that was asked for, now that nothing of the job is alive."""
        asked = job.restart
        assert asked is not None
        try:
            if asked.roll_back_to is not None:
                await actions.set_aside(job.spec, list(job.attempts), asked.roll_back_to)
            changes = changed_spec(job.spec, asked.backend)
        except AutoexpError as error:
            self._log.error("%s: cannot be restarted: %s", job.spec.title, error)
            reason = f"could not be restarted: {error}"
            ending = Ending(verdict=Verdict.FAILED, action=asked.action, reason=reason)
            await self._disk.persist(self._session.change_job, job, ending=ending, restart=None)
        except Exception as error:
            await self._wait_before_retry(job.spec.name, error)
        else:
            await self._disk.persist(acting.replaced, self._session, job, changes)

    async def _submit(self, job: JobRecord, attempt: Attempt, *, fresh: bool) -> None:
        ticket = self._session.ticket(attempt)
        try:
            avoided = self._session.blame.current(now())
            job_id = await effects.submit(
                self._scheduler, ticket, job.spec, attempt, avoided, fresh=fresh
            )
        except SubmissionRefused as error:
            self._log.error("%s: refused: %s", job.spec.title, error)
            await self._disk.persist(self._session.refuse, job, attempt, str(error))
        except Exception as error:
            warning = f"not submitted yet: {error}"
            if job.warning != warning:
                await self._disk.persist(self._session.change_job, job, warning=warning)
            await self._wait_before_retry(attempt.key, error)
        else:
            await self._disk.persist(self._session.record_submission, job, attempt, job_id)
            self._log.info("%s: submitted as job %s", job.spec.title, job_id)

    async def _withdraw(self, job: JobRecord, attempt: Attempt) -> None:
        """Close an intent that nobody wants any more, or learn its job id, so as to cancel it."""
        ticket = self._session.submission_ticket(attempt)
        try:
            job_id = await effects.withdraw(self._scheduler, ticket, attempt)
        except Exception as error:
            await self._wait_before_retry(attempt.key, error)
            return
        if job_id is None:
            await self._disk.persist(self._session.withdraw, job, attempt)
            self._log.info("%s: not submitted: %s", attempt.key, job.cancel_requested or job.reason)
        else:
            await self._disk.persist(self._session.record_submission, job, attempt, job_id)

    async def _wait_before_retry(self, key: str, error: Exception) -> None:
        """Whatever it was, the next try looks the attempt up by name before it submits."""
        self._log.warning("%s: not submitted yet: %s", key, error)
        tries = self._tries[key] = self._tries.get(key, 0) + 1
        tick = self._session.experiment.slurm.scheduler_tick_s
        longest = min(_LONGEST_RETRY_S, tick * 2**tries)
        await self._news.pause(longest * random.uniform(0.8, 1.2))
        self._news.stir()  # for whoever waits to try again


def _begun_as_array(job: JobRecord) -> bool:
    attempt = job.unsubmitted
    return attempt is not None and attempt.array_index is not None
