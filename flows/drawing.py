"""Each job of a session as a subflow of its flow run; the session never waits for one."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from prefect import State, get_client, tags
from prefect.client.schemas.objects import StateDetails
from prefect.exceptions import PrefectSignal
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Completed

from autoexp.jobs import JobRecord, JobSpec
from autoexp.session import Session
from flows.cooldown import final_state, job_flow
from flows.face import Face
from flows.news import News
from flows.sending import Sending, Turn
from flows.wishes import Wishes

_RETRY_S = 15.0


class Drawing:
    """Shows jobs; what Prefect does not take now is shown when it answers again."""

    def __init__(
        self,
        session: Session,
        news: News,
        sending: Sending,
        face: Face,
        wishes: Wishes,
        marks: Mapping[str, State[Any]],
        log: "logging.Logger | Any",
    ) -> None:
        # By job, the task run of the checkpoint that launched it: an arrow in the run graph.
        self._marks = marks
        self._session = session
        self._news = news
        self._sending = sending
        self._face = face
        self._wishes = wishes
        self._log = log
        self._drawn: set[tuple[str, int]] = set()
        self._flow_run_ids: dict[str, str] = {}

    def draw(self, children: asyncio.TaskGroup) -> None:
        """Start the subflows of jobs that have been submitted, or are about to be."""
        for job in self._session.jobs.values():
            # One that is run again after it had failed is a new story.
            if job.attempts and (job.spec.name, job.retries) not in self._drawn:
                self._drawn.add((job.spec.name, job.retries))
                self._flow_run_ids.pop(job.spec.name, None)
                children.create_task(self._draw(job))

    async def outcome(self, name: str) -> JobRecord:
        """Wait until a job has its verdict, or nobody watches any more."""
        job = self._session.jobs[name]
        while not job.is_over and self._news.interrupted is None:
            await self._news.next()
        return job

    async def _draw(self, job: JobRecord) -> None:
        name = job.spec.name
        try:
            while not await self._show(job) and not self._is_late():
                await self._news.pause(_RETRY_S)
        finally:
            self._wishes.forget(name)

    def _is_late(self) -> bool:
        return self._news.interrupted is not None or self._news.ended_at is not None

    async def _show(self, job: JobRecord) -> bool:
        """Whether the job's subflow has been shown to its end."""
        turn = Turn(self._sending.line)
        await turn.take()
        try:
            if self._news.interrupted is None:
                await self._tell(job, turn)
        except (Exception, PrefectSignal) as error:
            turn.give()
            self._log.warning("%s: Prefect could not show it: %s", job.spec.title, error)
            return await self._mend(job)
        finally:
            turn.give()
            self._face.start(job.spec.name)
        return True

    async def _tell(self, job: JobRecord, turn: Turn) -> None:
        name = job.spec.name

        def begin(flow_run_id: str | None) -> None:
            self._face.start(name)
            if flow_run_id is not None:
                self._flow_run_ids[name] = flow_run_id
                self._wishes.add(flow_run_id, name)

        subflow = job_flow(self, job.spec, turn, begin)
        # The session's heartbeat is enough: each subflow's would be hundreds of events a day.
        quiet = temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})
        with quiet, tags(*self._face.tags):
            shown: Any = subflow(after=self._origins(job.spec), return_state=True)
            await shown

    def _origins(self, spec: JobSpec) -> list[State[Any]]:
        """Where its arrows come from: its checkpoint, else the jobs that it follows."""
        if mark := self._marks.get(spec.name):
            return [mark]
        above = [awaited.job for awaited in spec.awaits]
        if not above and spec.parent is not None:
            above = [spec.parent]
        shown = [(name, self._flow_run_ids[name]) for name in above if name in self._flow_run_ids]
        return [
            # The graph knows a subflow by its flow run's id, also where it has a task run's.
            Completed(data=name, state_details=StateDetails(task_run_id=UUID(flow_run_id)))
            for name, flow_run_id in shown
        ]

    async def _mend(self, job: JobRecord) -> bool:
        """Tell the end of a subflow that could not tell it itself; False: it has not begun."""
        flow_run_id = self._flow_run_ids.get(job.spec.name)
        if flow_run_id is None:
            return False
        state = final_state(await self.outcome(job.spec.name))

        async def send() -> None:
            async with get_client() as client:
                await client.set_flow_run_state(UUID(flow_run_id), state, force=True)

        return await self._sending.until_taken(f"the end of {job.spec.title}", send)
