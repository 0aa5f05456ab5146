"""Shows each job of a session as a Prefect subflow; the session never waits for one."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

from prefect import Flow, State, flow, get_client, tags
from prefect.client.schemas.objects import StateDetails
from prefect.exceptions import PrefectSignal
from prefect.runtime import flow_run
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Cancelled, Completed, Crashed, Failed, Running

from autoexp import sinks
from autoexp.flows.concurrency.children import Children, Updates
from autoexp.flows.concurrency.outbox import PrefectOutbox, WriteSlot, is_prefect_error
from autoexp.flows.concurrency.turns import Precedence
from autoexp.flows.engine.cancellation import CancellationWatcher
from autoexp.flows.engine.phase_runner import JobRun, JobRuns, Mark
from autoexp.flows.publishing.artifacts import ArtifactPublisher
from autoexp.flows.publishing.job_logs import JobLogs
from autoexp.jobs.spec import JobSpec
from autoexp.monitor.worklist import JobView
from autoexp.states import Activity, Verdict

_RETRY_S = 15.0
_SETTLES_S = 2.0
_END_WITHIN_S = 5.0
"""How long the end of a subflow waits for the lock: while a server is away, all end in time."""


class Subflows:
    """Starts and ends subflows; what Prefect does not accept now is sent when it answers again."""

    def __init__(
        self,
        updates: Updates,
        outbox: PrefectOutbox,
        artifacts: ArtifactPublisher,
        cancellations: CancellationWatcher,
        marks: Mapping[str, Mark],
        job_runs: JobRuns,
        precedence: Precedence,
        job_logs: JobLogs,
    ) -> None:
        # By job, the task run of the checkpoint that launched it: an arrow in the run graph.
        self._marks = marks
        self._job_runs = job_runs
        self._precedence = precedence
        self._updates = updates
        self._outbox = outbox
        self._artifacts = artifacts
        self._cancellations = cancellations
        self._job_logs = job_logs
        self._started: set[tuple[str, int]] = set()
        self._views: dict[str, JobView] = {}
        self._changes: dict[str, asyncio.Event] = {}
        self._flow_run_ids: dict[str, str] = {}
        # The next to begin gives way to work; ends meanwhile get the write lock.
        self._next_lock = asyncio.Lock()

    def start_new(self, children: Children, changed: Sequence[JobView]) -> None:
        """Start the subflows of jobs that have been submitted, or are about to be; end others."""
        for job in changed:
            name = job.spec.name
            self._views[name] = job
            if name in self._changes:
                self._changes[name].set()
            # A job that is retried after it had failed gets a new subflow.
            if job.is_begun and (name, job.retries) not in self._started:
                self._started.add((name, job.retries))
                self._flow_run_ids.pop(name, None)
                self._job_logs.end(name)
                self._changes[name] = asyncio.Event()
                run = self._job_runs.start(name)
                children.spawn(job.spec.title, self._show(job, run))

    def stop(self) -> None:
        """Let subflows end that wait for their job: nobody watches it any longer."""
        if self._updates.interrupted is not None:
            self._job_runs.stop()
        for change in self._changes.values():
            change.set()

    async def wait_for_verdict(self, name: str, shown: Activity | None = None) -> JobView:
        """Wait until a job has its verdict, or is no longer watched.

        With `shown`, what its run's state says now, the state follows what the job does meanwhile.
        """
        change, pause_s = self._changes[name], _SETTLES_S
        while not self._views[name].is_over and not self._updates.is_over:
            activity = self._views[name].activity
            is_shown = shown is None or activity is shown
            with suppress(TimeoutError):
                # What lasts a moment is not worth a request, and a crowd's would hold up others.
                async with asyncio.timeout(None if is_shown else pause_s):
                    await change.wait()
            if not is_shown and not change.is_set():
                is_taken = await self._show_activity(self._views[name])
                shown, pause_s = (activity, _SETTLES_S) if is_taken else (shown, _RETRY_S)
            change.clear()
        return self._views[name]

    async def _show_activity(self, job: JobView) -> bool:
        """Give the job's run a state of its own name; False where Prefect did not take it."""
        message = job.reason and sinks.terminal(job.reason)
        state: State[Any] = Running(name=str(job.activity), message=message)
        flow_run_id = UUID(self._flow_run_ids[job.spec.name])
        slot = WriteSlot(self._outbox.write_lock)
        try:
            async with asyncio.timeout(_END_WITHIN_S), get_client() as client:
                await self._precedence.yield_to_work(time.monotonic())
                await slot.acquire()
                # Prefect refuses it for a run that is being cancelled.
                await client.set_flow_run_state(flow_run_id, state)
        except Exception as error:
            if isinstance(error, TimeoutError) or is_prefect_error(error):
                return False
            raise
        finally:
            slot.release()
        return True

    async def _show(self, job: JobView, run: JobRun) -> None:
        try:
            while not await self._run(job, run) and not self._updates.is_over:
                await self._updates.pause(_RETRY_S)
        finally:
            run.end()
            self._cancellations.forget(job.spec.name)

    async def _run(self, job: JobView, run: JobRun) -> bool:
        """Run the job's subflow to its end; False when Prefect did not accept it."""
        since = time.monotonic()
        origins = await self._origins(job.spec)
        slot = WriteSlot(self._outbox.write_lock)
        try:
            async with self._next_lock:
                await self._precedence.yield_to_work(since)
                await slot.acquire()
            if self._updates.interrupted is None:
                await self._run_subflow(job, run, origins, slot)
        except (Exception, PrefectSignal) as error:
            slot.release()
            self._outbox.outage.note_refused(f"`{job.spec.title}`", error)
            return await self._close_run(job)
        finally:
            slot.release()
            self._artifacts.add_progress_bar(job.spec.name)
        return True

    async def _run_subflow(
        self, job: JobView, run: JobRun, origins: Sequence[State[Any]], slot: WriteSlot
    ) -> None:
        name = job.spec.name

        def begin(flow_run_id: str | None) -> None:
            self._artifacts.add_progress_bar(name)
            if flow_run_id is not None:
                self._outbox.outage.note_taken(f"`{job.spec.title}`", slot.asked_at)
                self._flow_run_ids[name] = flow_run_id
                self._job_logs.begin(name, flow_run_id)
                run.begin()
                self._cancellations.add(flow_run_id, name)

        subflow = self._subflow_of(job.spec, slot, begin)
        # The session's heartbeat is enough: each subflow's would be hundreds of events a day.
        quiet = temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})
        with quiet, tags(*self._artifacts.tags):
            shown: Any = subflow(after=origins, return_state=True)
            await shown
        self._outbox.note_taken(f"`{job.spec.title}`", slot.asked_at)

    def _subflow_of(
        self, spec: JobSpec, slot: WriteSlot, begin: Callable[[str | None], None]
    ) -> Flow[..., Any]:
        """The subflow of one job: waits for its verdict; `begin` is called once it has started.

        It starts and ends under the write lock, which its caller holds at the start. Its end goes
        on without it where a server does not answer.

        Each job gets a flow object of its own. Prefect matches the subflows of a flow run that is
        run again by their name and the order of the calls, so with one shared function a call
        would return the result of another job (Prefect issue 18601).
        """

        async def job_subflow(after: Sequence[str] = ()) -> State[Any]:
            del after  # draws the arrows from what started this job
            with sinks.plain_errors():
                begin(flow_run.id)
                slot.release()
                job = await self.wait_for_verdict(spec.name, Activity.RUNNING)
                await slot.acquire(_END_WITHIN_S)
                return final_state(job)

        job_subflow.__qualname__ = f"{spec.kind}.{spec.name}"
        # A second run would only say the job's verdict again, whatever this user's default is.
        options: dict[str, Any] = {"validate_parameters": False, "retries": 0}
        decorate = flow(name=str(spec.kind), flow_run_name=spec.label, **options)
        return decorate(job_subflow)

    async def _origins(self, spec: JobSpec) -> list[State[Any]]:
        """Sources of its arrows in the run graph: its checkpoint, else the jobs it depends on."""
        if (mark := self._marks.get(spec.name)) and (checkpoint := await mark):
            return [checkpoint]
        above = [awaited.job for awaited in spec.awaits]
        if not above and spec.parent is not None and spec.baseline is None:
            above = [spec.parent]
        # Arrows come from them, and none can be drawn later, however late a server is: what is
        # shown holds up no job.
        await self._job_runs.all_settled(above)
        shown = [(name, self._flow_run_ids[name]) for name in above if name in self._flow_run_ids]
        return [
            # The graph knows a subflow by its flow run's id, also where it has a task run's.
            Completed(data=name, state_details=StateDetails(task_run_id=UUID(flow_run_id)))
            for name, flow_run_id in shown
        ]

    async def _close_run(self, job: JobView) -> bool:
        """Send the final state of a subflow that could not itself; False: it has not begun."""
        flow_run_id = self._flow_run_ids.get(job.spec.name)
        if flow_run_id is None:
            return False
        state = final_state(await self.wait_for_verdict(job.spec.name))

        async def send() -> None:
            async with get_client() as client:
                await client.set_flow_run_state(UUID(flow_run_id), state, force=True)

        return await self._outbox.send_with_retry(f"the end of {job.spec.title}", send)


def final_state(job: JobView) -> State[Any]:
    """The state in which the job's subflow ends."""
    reason = job.reason and sinks.terminal(job.reason)
    if job.was_cancelled:
        return Cancelled(message=reason)
    match job.verdict:
        case Verdict.FINISHED:
            return Completed(message=reason)
        case Verdict.FAILED:
            log = f". Read {sinks.terminal(job.log)}" if job.log else ""
            return Failed(message=f"{reason}{log}")
        case _:
            left = "the job keeps running" if job.is_in_queue else "no job of it is running"
            return Crashed(message=f"the monitor was stopped; {left}")
