"""The one monitor of a session: looks at logs, checkpoint folders and the scheduler's answers.

``look` changes records in memory, returns what happened, and writes it through the recorder.
``next_work` returns the work to do, as values: whoever does it, outside the loop, never reads a
record. One job that cannot be looked at is that job's warning, never the end of the session.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from autoexp.jobs import starts
from autoexp.jobs.record import Attempt, Ending, JobRecord
from autoexp.jobs.verdicts import counts, judge_by_files, made_progress
from autoexp.logs.tail import LogCursor, LookBudget
from autoexp.monitor.decide import decide, may_change_end
from autoexp.monitor.job_watch import JobWatch
from autoexp.monitor.recorder import Recorder
from autoexp.monitor.retention import RetentionWatch
from autoexp.monitor.session_events import overview, ready, unsatisfiable_reason
from autoexp.monitor.worklist import Worklist
from autoexp.rules.events import (
    AttemptJudged,
    Event,
    JobGivenUp,
    NodesFoundSick,
    StartedElsewhere,
)
from autoexp.schedulers.base import AttemptRef, JobStatus, apply
from autoexp.session.action_records import ActionRecord
from autoexp.session.session import Session
from autoexp.states import Verdict

_LONGEST_SAVE_S = 0.1


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


class Monitor:
    """Monitors all jobs of a session; the caller provides the scheduler's answers and the clock."""

    def __init__(self, session: Session, clock: Callable[[], float] | None = None) -> None:
        self.recorder = Recorder(session)
        self.worklist = Worklist(session, self.recorder, clock)
        """Steps and actions to start, and those under way."""
        self.watches: defaultdict[str, JobWatch] = defaultdict(JobWatch)
        self._retention = RetentionWatch(session, self.recorder)
        self._session = session
        self._urgent: set[str] = set()
        # Jobs whose logs have more to read; the one that waited longest comes first.
        self._behind: deque[str] = deque()

    @property
    def session(self) -> Session:
        """The session that is watched."""
        return self._session

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
        what = "which checkpoints may go cannot be decided"
        self.recorder.contain(what, "", self._retention.look)
        self.worklist.consider(changed)
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

    def due_in_s(self) -> float:
        """Seconds until something is due that no file tells of; 0: the next look finds it."""
        if self._behind or self.recorder.is_behind:
            return 0.0
        return self.worklist.due_in_s()

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
            watch.at_end, watch.log = True, None
            return  # a new attempt has a log of its own
        ended = not current.is_open
        watched = self.recorder.book.watched(job.spec)
        seen.extend(watch.read_log(job, current, watched, budget, final=ended))
        watch.log = current.log
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
            may_change_end(action.action, job)
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
        elif counts(job, attempt) and not attempt.sick_nodes:
            job.attempts_without_progress += 1
        if judgement.verdict is Verdict.CONTINUE:
            # The next attempt, queued ahead or not, starts from here and has its own log.
            job.cursor, job.tail = LogCursor(), []
            for later in job.open_attempts:
                later.first_iteration = job.saved_iteration
                later.earliest_start = starts.earliest_of_next(job, attempt)
        else:
            job.verdict, job.reason = judgement.verdict, judgement.reason
        if attempt.sick_nodes:
            self.recorder.unwritten.append(
                NodesFoundSick(
                    job=job.spec.name,
                    attempt=attempt.number,
                    key_of_attempt=attempt.key,
                    nodes=attempt.sick_nodes,
                )
            )
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
        """Write the records of events, and of progress those that are due, the longest first.

        Those that a look has no time for come with the next: a hundred jobs that log alike would
        hold everything else up each time.
        """
        every = self._session.experiment.monitoring.save_progress_every_s
        now = time.monotonic()
        due = {
            n: watch.saved_at
            for n, watch in self.watches.items()
            if watch.dirty and now - watch.saved_at >= every
        }
        if not due and not self._urgent:
            return
        first = [name for name in self._session.jobs if name in self._urgent]
        then = sorted(due.keys() - self._urgent, key=lambda name: due[name])
        for place, name in enumerate((*first, *then)):
            if place >= len(first) and time.monotonic() - now > _LONGEST_SAVE_S:
                return
            job = self._session.jobs[name]
            self.recorder.contain(f"{name}: cannot be saved", name, self._save, job)
            self._urgent.discard(name)

    def _save(self, job: JobRecord) -> None:
        watch = self.watches[job.spec.name]
        with self._session.writing():
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
