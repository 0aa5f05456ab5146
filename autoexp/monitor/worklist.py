"""The work of a session: which steps and actions are due, under way, or to be retried.

``next_work`` hands work over as values, each item once, and whoever does it says how it ended.
"""

import time
from collections.abc import Callable, Collection, Iterable
from functools import partial
from math import inf
from typing import NamedTuple

from autoexp.backoff import delay_s
from autoexp.jobs.record import JobRecord
from autoexp.jobs.spec import JobSpec
from autoexp.jobs.summary import activity_of
from autoexp.monitor.recorder import Recorder
from autoexp.monitor.steps import (
    GiveBack,
    NextStep,
    Submit,
    intended_array,
    next_step,
    not_done,
    together,
)
from autoexp.resources.pools import InUse, PoolUnavailable, Queue, SlotPool, Wanted, why_waiting
from autoexp.rules.actions import Keep, Start
from autoexp.session.action_records import ActionRecord, ActionStatus
from autoexp.session.inbox import is_done
from autoexp.session.session import Session
from autoexp.states import Activity, Verdict

_LONGEST_RETRY_S = 300.0


class JobView(NamedTuple):
    """A snapshot of a job, for those who must not read its record."""

    spec: JobSpec
    retries: int
    is_begun: bool
    """True if it has been submitted, or is about to be, or waits for slots of its pool."""
    is_in_queue: bool
    """True if the scheduler has an attempt of it, or is about to get one: it needs no monitor."""
    activity: Activity
    is_over: bool
    was_cancelled: bool
    verdict: Verdict | None
    reason: str | None
    log: str | None

    @classmethod
    def of(cls, job: JobRecord) -> "JobView":
        log = job.attempt.log if job.attempt else None
        return cls(
            spec=job.spec,
            retries=job.retries,
            is_begun=bool(job.attempts) or job.waits_for_slots is not None,
            is_in_queue=bool(job.open_attempts),
            activity=activity_of(job),
            is_over=job.is_over,
            was_cancelled=job.was_cancelled,
            verdict=job.verdict,
            reason=job.reason or job.waits_for_slots,
            log=log,
        )


class Work(NamedTuple):
    """Work to do now, each item once, with the values that it needs."""

    steps: list[NextStep]
    actions: list[ActionRecord]
    """Copies of the actions that can start."""
    jobs: list[JobView]
    """Snapshots of the jobs that changed since the last call."""
    has_conditions: bool
    """True if actions wait for conditions to hold."""
    is_over: bool


class _Failure(NamedTuple):
    """A step that failed, and the time of its retry on the monitor's clock."""

    kind: type
    times: int
    retry_at: float


class Worklist:
    """Hands out steps and actions, and keeps track of those under way.

    For the session's thread.
    """

    def __init__(
        self, session: Session, recorder: Recorder, clock: Callable[[], float] | None = None
    ) -> None:
        self.asked_to_end: set[str] = set()
        """Keys of the attempts whose cancellation was requested."""
        self.longest_array: int | None = None
        """Longest array in tasks; None: not yet queried."""
        self.pool: SlotPool | None = None
        """Who counts the slots of pools; None: nobody does here."""
        self._session = session
        self._recorder = recorder
        # Looked up at each call: a simulation has its own clock.
        self._clock = clock or (lambda: time.monotonic())
        # Jobs to consider when the next steps are chosen, and work under way.
        self._candidates = set(session.jobs)
        self._waiting_for_room: set[str] = set()
        self._slots = Queue()
        self._pools_away: set[str] = set()
        self._under_way: set[str] = set()
        self._failures: dict[str, _Failure] = {}
        self._acting: set[str] = set()
        self._starting: set[str] = set()
        self._ready: set[str] = set()
        self._viewed: set[str] = set(session.jobs)

    def consider(self, jobs: Collection[str]) -> None:
        """Have the next steps of these jobs chosen: they have changed."""
        self._candidates.update(jobs)

    def due_in_s(self) -> float:
        """Seconds until a step is due; 0: it is chosen at the next call."""
        if self._candidates - self._under_way:
            return 0.0
        failed_at = min((f.retry_at for f in self._failures.values()), default=inf)
        return min(failed_at, self._slots.next_at()) - self._clock()

    def next_work(self, *, after_look: bool = True) -> Work:
        """Work to do that is not under way; cheap while nothing has changed.

        Between two looks, jobs that could start together wait for those that are being started.
        """
        changed = self._session.take_changed()
        self._candidates |= changed
        self._viewed |= self._candidates
        jobs = [JobView.of(self._session.jobs[name]) for name in self._in_order(self._viewed)]
        self._viewed = set()
        # Last: work that is handed over is under way from here on, and nothing may keep it back.
        steps = self._next_steps(wait=bool(self._starting) and not after_look)
        actions, has_conditions = self._next_actions()
        # A request that came at the last moment, or to a session that had ended, is processed too.
        is_over = after_look and self._session.is_over and is_done(self._session)
        return Work(steps, actions, jobs, has_conditions, is_over)

    def _next_steps(self, *, wait: bool) -> list[NextStep]:
        now = self._clock()
        due = {name for name, failure in self._failures.items() if failure.retry_at <= now}
        chosen = (self._candidates | due) - self._under_way
        self._candidates &= self._under_way
        chosen = self._with_whole_arrays(chosen)
        waiting = self._waiting_for_room - self._under_way
        if self._slots.next_at() <= now:
            chosen |= self._slots.waiting - self._under_way
        if not chosen and not waiting:
            return []
        places = self._session.room()
        if places != 0:
            chosen |= waiting
        found: list[NextStep] = []
        for name in self._in_order(chosen):
            job = self._session.jobs[name]
            self._waiting_for_room.discard(name)
            try:
                step = next_step(job, asked=self.asked_to_end)
            except Exception as error:
                self._recorder.warn(f"{name}: what it needs next is not known ({error})", job)
                continue
            if step is None:
                self._failures.pop(name, None)  # what failed is not asked for any longer
                self._slots.forget(name)
                continue
            if not self._may_retry(name, step, now):
                continue
            if wait and isinstance(step, Submit) and step.as_array:
                self._candidates.add(name)
                continue
            if isinstance(step, Submit) and job.unsubmitted is None:
                if places is not None and places <= 0:
                    self._waiting_for_room.add(name)
                    if job.slots is not None and not job.open_attempts:
                        found.append(GiveBack((name,)))  # others may have room for them
                    continue
                if not self._may_take_slots(job, now):
                    continue
                places = None if places is None else places - 1
            found.append(step)
        # Until the longest array is known, they go as one step that asks for it.
        longest = self.longest_array or len(self._session.jobs)
        steps = together(found, self._session.jobs, longest)
        self._under_way |= {name for step in steps for name in step.jobs}
        return steps

    def _may_take_slots(self, job: JobRecord, now: float) -> bool:
        """True if a job needs no slots of a pool, or it is its turn to ask for them."""
        wanted = job.wanted_slots
        if wanted is None or job.open_attempts:
            return True
        answer = self._slots.may_ask(job.spec.name, wanted, now)
        if answer is not None:
            self._note_waiting(job, why_waiting(wanted, answer))
        return answer is None

    def _note_waiting(self, job: JobRecord, why: str) -> None:
        if job.waits_for_slots != why:
            name = job.spec.name
            change = partial(self._session.change_job, job, waits_for_slots=why)
            self._recorder.contain(f"{name}: cannot be saved", name, change)

    def refuse_slots(self, name: str, wanted: Wanted, answer: InUse) -> str:
        """Record that a pool has too few slots for a job, which asks again; returns the reason."""
        tick = self._session.experiment.slurm.scheduler_tick_s
        self._slots.refuse(name, wanted, answer, self._clock() + tick)
        why = why_waiting(wanted, answer)
        self._note_waiting(self._session.jobs[name], why)
        return why

    def note_pool(self, pool: str, error: PoolUnavailable | None) -> bool:
        """Note whether a pool answers; True where that is new."""
        was_away = pool in self._pools_away
        (self._pools_away.discard if error is None else self._pools_away.add)(pool)
        return was_away is (error is None)

    def _with_whole_arrays(self, names: set[str]) -> set[str]:
        """Add the other tasks of intended arrays; drop those of an array of which one is under way.

        A part of them would be taken for the whole: an array is found by its name.
        """
        wanted = {intended_array(self._session.jobs[name]) for name in names} - {None}
        if not wanted:
            return names
        tasks: dict[str, set[str]] = {}
        for name, job in self._session.jobs.items():
            if (array := intended_array(job)) in wanted:
                tasks.setdefault(str(array), set()).add(name)
        whole = set(names)
        for task_names in tasks.values():
            if task_names & self._under_way:
                self._candidates |= task_names & names
                whole -= task_names
            else:
                whole |= task_names
        return whole

    def _in_order(self, names: Collection[str]) -> Iterable[str]:
        """Sort names in the session's order; without a scan of all jobs for a few names."""
        if len(names) < 2:
            return list(names)
        return [name for name in self._session.jobs if name in names]

    def _may_retry(self, name: str, step: NextStep, now: float) -> bool:
        failure = self._failures.get(name)
        # The step needed now may differ from the one that failed: that need not wait.
        return failure is None or failure.kind is not type(step) or failure.retry_at <= now

    def end_step(self, step: NextStep) -> None:
        """Record that a step has ended; the next one is chosen for its jobs."""
        self._under_way.difference_update(step.jobs)
        self._candidates.update(step.jobs)
        for name in step.jobs:
            self._failures.pop(name, None)
            self._slots.answered(name)

    def fail_step(self, step: NextStep, reason: str) -> int:
        """Record a failed step as a warning of its jobs; returns the number of failures in a row.

        It is retried after a while, or replaced by another step that is needed meanwhile.
        """
        for name in step.jobs:
            self._slots.answered(name)
            job, warning = self._session.jobs[name], not_done(step, reason)
            if job.warning != warning:
                change = partial(self._session.change_job, job, warning=warning)
                self._recorder.contain(f"{name}: cannot be saved", name, change)
        self._under_way.difference_update(step.jobs)
        self._candidates.update(step.jobs)
        before = [self._failures[name] for name in step.jobs if name in self._failures]
        count = 1 + max((each.times for each in before if each.kind is type(step)), default=0)
        tick = self._session.experiment.slurm.scheduler_tick_s
        # One time for all of them: jobs that go together are retried together.
        retry_at = self._clock() + delay_s(count, tick, _LONGEST_RETRY_S)
        self._failures |= dict.fromkeys(step.jobs, _Failure(type(step), count, retry_at))
        return count

    def _next_actions(self) -> tuple[list[ActionRecord], bool]:
        """Actions that can start, and True if others wait for conditions."""
        found, has_conditions = [], False
        for action in self._session.pending_actions():
            if action.key in self._acting:
                continue
            is_conditional = action.when and action.status is ActionStatus.PENDING
            if is_conditional and action.key not in self._ready:
                has_conditions = True
                continue
            found.append(action.model_copy())
        self._ready.clear()
        self._acting |= {action.key for action in found}
        self._starting |= {a.key for a in found if isinstance(a.action, Start | Keep)}
        return found, has_conditions

    def waiting_actions(self) -> list[ActionRecord]:
        """Copies of the actions that wait for conditions to hold."""
        return [
            action.model_copy()
            for action in self._session.pending_actions()
            if action.when
            and action.status is ActionStatus.PENDING
            and action.key not in self._acting
        ]

    def conditions_hold(self, key: str) -> None:
        """Record that an action's conditions hold: it can start."""
        self._ready.add(key)

    def end_action(self, key: str) -> None:
        """Record that an action is no longer under way."""
        self._acting.discard(key)
        self._starting.discard(key)
