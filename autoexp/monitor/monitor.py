"""The one monitor of a session: looks at logs, checkpoint folders and the scheduler's answers.

``look` changes records in memory, returns what happened, and writes it through the recorder.
``next_work` returns the work to do, as values: whoever does it, outside the loop, never reads a
record. One job that cannot be looked at is that job's warning, never the end of the session.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from autoexp.backoff import delay_s
from autoexp.jobs import starts
from autoexp.jobs.record import Attempt, Ending, JobRecord
from autoexp.jobs.spec import JobSpec
from autoexp.jobs.verdicts import counts, judge_by_files, made_progress, saved_iteration
from autoexp.logs.tail import LogCursor, LookBudget
from autoexp.monitor.decide import decide
from autoexp.monitor.dependencies import ready, unsatisfiable_reason
from autoexp.monitor.job_watch import JobWatch
from autoexp.monitor.recorder import Recorder
from autoexp.monitor.session_events import overview
from autoexp.monitor.steps import NextStep, Submit, next_step, not_done, together
from autoexp.rules.actions import ENDS_AN_ATTEMPT, Action, Fail, Finish, Keep, Restart, Start
from autoexp.rules.events import AttemptJudged, Event, JobGivenUp, StartedElsewhere
from autoexp.schedulers.base import AttemptRef, JobStatus, apply
from autoexp.session.action_records import ActionRecord, ActionStatus
from autoexp.session.inbox import is_done
from autoexp.session.session import Session
from autoexp.states import Verdict

_LONGEST_RETRY_S = 300.0


class Look(NamedTuple):
    """The result of one look."""

    events: list[Event]
    actions: list[ActionRecord]
    changed: set[str]
    """Names of jobs that changed in any way, including the loss."""
    warnings: tuple[str, ...] = ()
    """Failures to read or write something, each logged once."""
    has_more: bool = False
    """True if a log has more to read than one look takes: the next look need not wait."""


class JobView(NamedTuple):
    """A snapshot of a job, for those who must not read its record."""

    spec: JobSpec
    retries: int
    is_begun: bool
    """True if it has been submitted, or is about to be."""
    is_in_queue: bool
    """True if the scheduler has an attempt of it, or is about to get one: it needs no monitor."""
    is_over: bool
    was_cancelled: bool
    verdict: Verdict | None
    reason: str | None
    log: str | None

    @classmethod
    def of(cls, job: JobRecord) -> "JobView":
        log = job.attempt.log if job.attempt else None
        return cls(
            *(job.spec, job.retries, bool(job.attempts), bool(job.open_attempts), job.is_over),
            *(job.was_cancelled, job.verdict, job.reason, log),
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


class Monitor:
    """Monitors all jobs of a session; the caller provides the scheduler's answers and the clock."""

    def __init__(self, session: Session, clock: Callable[[], float] | None = None) -> None:
        self.recorder = Recorder(session)
        self.asked_to_end: set[str] = set()
        """Keys of the attempts whose cancellation was requested."""
        self.longest_array: int | None = None
        """Longest array in tasks; None: not yet queried."""
        self._session = session
        # Looked up at each call: a simulation has its own clock.
        self._clock = clock or (lambda: time.monotonic())
        self.watches: defaultdict[str, JobWatch] = defaultdict(JobWatch)
        self._urgent: set[str] = set()
        # Jobs whose logs have more to read; the one that waited longest comes first.
        self._behind: deque[str] = deque()
        # Jobs to consider when the next steps are chosen, and work under way.
        self._candidates = set(session.jobs)
        self._waiting_for_room: set[str] = set()
        self._under_way: set[str] = set()
        self._failures: dict[str, _Failure] = {}
        self._acting: set[str] = set()
        self._starting: set[str] = set()
        self._ready: set[str] = set()
        self._viewed: set[str] = set(session.jobs)

    def refs(self) -> list[AttemptRef]:
        """The attempts to ask the scheduler about, all in one query."""
        return [
            self._session.ref(attempt)
            for job in self._session.jobs.values()
            for attempt in job.open_attempts
            if attempt.job_id is not None
        ]

    def look(self, statuses: Mapping[str, JobStatus]) -> Look:
        """Look at every job once and write what changed.

        Raises OSError when the session cannot be written; what was seen is kept for the next look.
        """
        learn = self.recorder.learn_new_jobs
        self.recorder.contain("the rules of new jobs cannot be read", "", learn)
        changed: set[str] = set()
        # Only the scheduler's answer ends an attempt in a look.
        perhaps_ended: list[str] = []
        budget = LookBudget()
        # A log that had no turn has to wait for one look only.
        left_out: list[str] = []
        behind: deque[str] = deque()
        for name in self._behind_first():
            job = self._session.jobs[name]
            open_attempts = job.open_attempts
            if not open_attempts and job.verdict is not None:
                continue
            if statuses or not open_attempts:
                perhaps_ended.append(name)
            has_turn = budget.begin_first_turn()
            if self._look_and_note(job, open_attempts, statuses, budget, changed):
                (behind if has_turn else left_out).append(name)
        self._read_on(behind, budget, changed)
        self._behind = deque((*left_out, *behind))
        self.recorder.contain("the session as a whole cannot be looked at", "", self._look_around)
        self._write_down()
        self._save_records()
        changed |= self._give_up(perhaps_ended)
        self._candidates |= changed
        events, actions, warnings = self.recorder.take()
        return Look(events, actions, changed, tuple(warnings), bool(self._behind))

    def _behind_first(self) -> Iterable[str]:
        if not self._behind:
            return self._session.jobs
        return dict.fromkeys((*self._behind, *self._session.jobs))

    def _read_on(self, behind: deque[str], budget: LookBudget, changed: set[str]) -> None:
        """Read on in logs that have more, in turns, until the budget of the look is used up."""
        while behind and budget.is_left:
            share = budget.left / len(behind)
            for _ in range(len(behind)):
                if not budget.is_left:
                    return
                job = self._session.jobs[behind.popleft()]
                budget.begin_turn(share)
                if self._look_and_note(job, job.open_attempts, {}, budget, changed):
                    behind.append(job.spec.name)

    def _look_and_note(
        self,
        job: JobRecord,
        open_attempts: Sequence[Attempt],
        statuses: Mapping[str, JobStatus],
        budget: LookBudget,
        changed: set[str],
    ) -> bool:
        """Look at a job and note changes; True if its log has more to read."""
        name, unwritten = job.spec.name, self.recorder.unwritten
        before, watch = len(unwritten), self.watches[name]
        try:
            self._look_at(job, watch, open_attempts, statuses, budget)
            has_more = not watch.at_end
        except Exception as error:
            # Nothing is known of this job now; the others are looked at all the same.
            watch.warn_unreadable(job, error)
            self.recorder.warn(f"{name}: {job.warning}")
            has_more = False
        if watch.dirty or len(unwritten) > before:
            changed.add(name)
        return has_more

    def _look_around(self) -> None:
        """Check the session as a whole, and jobs that wait for others."""
        rules, unwritten = self.recorder.book.session_rules, self.recorder.unwritten
        unwritten.extend(overview(self._session, rules, unwritten))
        unwritten.extend(ready(self._session))

    def flush(self) -> None:
        """Write all changes since the last look that was worth a write."""
        for name, watch in self.watches.items():
            if watch.dirty:
                job = self._session.jobs[name]
                self.recorder.contain(f"{name}: cannot be saved", name, self._save, job)

    # Handing over

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
        waiting = self._waiting_for_room - self._under_way
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
                self.recorder.warn(f"{name}: what it needs next is not known ({error})", job)
                continue
            if step is None:
                self._failures.pop(name, None)  # what failed is not asked for any longer
                continue
            if not self._may_retry(name, step, now):
                continue
            if wait and isinstance(step, Submit) and step.as_array:
                self._candidates.add(name)
                continue
            if isinstance(step, Submit) and job.unsubmitted is None and places is not None:
                if places <= 0:
                    self._waiting_for_room.add(name)
                    continue
                places -= 1
            found.append(step)
        # Until the longest array is known, they go as one step that asks for it.
        longest = self.longest_array or len(self._session.jobs)
        steps = together(found, self._session.jobs, longest)
        self._under_way |= {name for step in steps for name in step.jobs}
        return steps

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

    def fail_step(self, step: NextStep, reason: str) -> int:
        """Record a failed step as a warning of its jobs; returns the number of failures in a row.

        It is retried after a while, or replaced by another step that is needed meanwhile.
        """
        for name in step.jobs:
            job, warning = self._session.jobs[name], not_done(step, reason)
            if job.warning != warning:
                change = partial(self._session.change_job, job, warning=warning)
                self.recorder.contain(f"{name}: cannot be saved", name, change)
        self._under_way.difference_update(step.jobs)
        self._candidates.update(step.jobs)
        tick, count = self._session.experiment.slurm.scheduler_tick_s, 0
        for name in step.jobs:
            before = self._failures.get(name)
            count = before.times + 1 if before and before.kind is type(step) else 1
            retry_at = self._clock() + delay_s(count, tick, _LONGEST_RETRY_S)
            self._failures[name] = _Failure(type(step), count, retry_at)
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

    # Looking

    def _look_at(
        self,
        job: JobRecord,
        watch: JobWatch,
        open_attempts: Sequence[Attempt],
        statuses: Mapping[str, JobStatus],
        budget: LookBudget,
    ) -> None:
        seen = self.recorder.unwritten
        # State first, log second: the last lines of a finished job are still read.
        for attempt in open_attempts if statuses else ():
            status = statuses.get(attempt.key)
            if status is not None:
                before = attempt.model_copy()
                seen.extend(apply(job.spec.name, attempt, status))
                watch.dirty |= attempt != before
        current = job.attempt
        if current is None or job.verdict is not None or current.verdict is not None:
            watch.at_end = True
            return  # a new attempt has a log of its own
        ended = not current.is_open
        watched = self.recorder.book.watched(job.spec)
        seen.extend(watch.read_log(job, current, watched, budget, final=ended))
        watch.check_start(job, current, ended=ended)
        seen.extend(watch.find_checkpoints(job, current, watched, ended=ended))
        if ended and watch.at_end:
            starts.note_pinned(job, current)
        watch.clear_unreadable(job)
        if current.wrong_start is not None:
            self._end_wrong_start(job, watch, current, current.wrong_start)
        if watched.inactivity_rules:
            seen.extend(watch.count_quiet_time(job, current, watched))
        if ended and watch.at_end and not self._awaits_decision(job, current):
            seen.append(self._judge(job, current))

    def _end_wrong_start(
        self, job: JobRecord, watch: JobWatch, attempt: Attempt, reason: str
    ) -> None:
        """End and fail a job whose attempt did not begin where it had to."""
        event = StartedElsewhere(job=job.spec.name, attempt=attempt.number, reason=reason)
        if job.ending is None or job.ending.action != event.key:
            self.recorder.unwritten.append(event)
            job.ending = Ending(verdict=Verdict.FAILED, action=event.key, reason=reason)
            watch.dirty = True

    def _awaits_decision(self, job: JobRecord, attempt: Attempt) -> bool:
        """True if a rule may still decide what the end of an attempt means."""
        if not self.recorder.book.ends_attempts or job.cancel_requested or job.ending:
            return False
        known = self._session.actions
        fresh = [
            action
            for event in self.recorder.unwritten
            if event.job == job.spec.name
            for action in decide(event, self.recorder.book.of(event), known)
        ]
        return any(
            _may_change(action.action, job)
            and action.event.job == job.spec.name
            and (action.attempt or getattr(action.event, "attempt", attempt.number))
            == attempt.number
            for action in (*fresh, *self._session.pending_actions())
        )

    def _judge(self, job: JobRecord, attempt: Attempt) -> AttemptJudged:
        most = self._session.experiment.monitoring.max_attempts_without_progress
        judgement = judge_by_files(job, attempt, most_without_progress=most)
        attempt.verdict = judgement.verdict
        if made_progress(job, attempt):
            job.attempts_without_progress = 0
        elif counts(job, attempt):
            job.attempts_without_progress += 1
        if judgement.verdict is Verdict.CONTINUE:
            # The next attempt, queued ahead or not, starts from here and has its own log.
            job.cursor, job.tail = LogCursor(), []
            for later in job.open_attempts:
                later.first_iteration = saved_iteration(job)
                later.earliest_start = starts.earliest_of_next(job, attempt)
        else:
            job.verdict, job.reason = judgement.verdict, judgement.reason
        return AttemptJudged(
            job=job.spec.name,
            attempt=attempt.number,
            verdict=judgement.verdict,
            state=attempt.state,
            iteration=job.iteration,
            reason=judgement.reason,
        )

    # Deciding and writing down

    def _write_down(self) -> None:
        """Write the actions, then the events of a look; the records of their jobs come after."""
        self._urgent |= {event.job for event in self.recorder.unwritten}
        self.recorder.write_down()

    def _save_records(self) -> None:
        every = self._session.experiment.monitoring.save_progress_every_s
        now = time.monotonic()
        due = {
            n for n, watch in self.watches.items() if watch.dirty and now - watch.saved_at >= every
        }
        if not due and not self._urgent:
            return
        for name, job in self._session.jobs.items():
            if name in due or name in self._urgent:
                self.recorder.contain(f"{name}: cannot be saved", name, self._save, job)
                self._urgent.discard(name)

    def _save(self, job: JobRecord) -> None:
        watch = self.watches[job.spec.name]
        # Rows before the cursor: a kill in between repeats rows, and readers use the last.
        self._session.log_progress(job, watch.rows)
        self._session.save_job(job)
        watch.saved()

    def _give_up(self, names: Iterable[str]) -> set[str]:
        """End jobs that nothing will submit: cancelled ones, cooldowns without a checkpoint."""
        given_up: set[str] = set()
        for name in names:
            job = self._session.jobs[name]
            # The unread rest of its log may show that it has finished.
            if not job.is_over and not job.open_attempts and name not in self._behind:
                self.recorder.contain(f"{name}: cannot be ended", name, self._give_up_one, job)
                if job.is_over:
                    self._urgent.discard(name)
                    given_up.add(name)
        return given_up

    def _give_up_one(self, job: JobRecord) -> None:
        reason = unsatisfiable_reason(self._session, job)
        if reason is None:
            return
        finishes = job.ending is not None and job.ending.verdict is Verdict.FINISHED
        if not finishes:
            gone = JobGivenUp(job=job.spec.name, reason=reason, retries=job.retries)
            self.recorder.record_and_decide([gone])
        self._session.settle(job, Verdict.FINISHED if finishes else Verdict.FAILED, reason)


def _may_change(action: Action, job: JobRecord) -> bool:
    """True if a pending action may change what the end of an attempt means."""
    if job.restart is None:
        return isinstance(action, ENDS_AN_ATTEMPT)
    # A restart is requested: it may yet become one with a roll back, or be overruled.
    rolls_back = isinstance(action, Restart) and action.roll_back
    return isinstance(action, Finish | Fail) or (rolls_back and job.restart.roll_back_to is None)
