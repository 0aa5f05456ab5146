"""The one monitor of a session: looks at logs, checkpoint folders and the scheduler's answers.

`look` changes records in memory, says what happened, and writes it down in an order in which a kill
loses nothing: actions, then events, then the records with their log cursors. What was not written
is seen again at the next look, under the same keys.
"""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from autoexp.events import AttemptJudged, Event, JobGivenUp
from autoexp.jobs import Attempt, JobRecord, Verdict
from autoexp.logtail import LogCursor
from autoexp.overview import overview
from autoexp.releasing import hopeless, ready
from autoexp.rules.actions import ENDS_AN_ATTEMPT, Action, Fail, Finish, Restart
from autoexp.rules.book import RuleBook
from autoexp.rules.decide import decide
from autoexp.rules.records import ActionRecord
from autoexp.schedulers.base import Sighting, Ticket, apply
from autoexp.session import Session
from autoexp.spending import over_budget
from autoexp.verdicts import counts, judge, made_progress, saved_iteration, with_scores
from autoexp.watch import JobWatch


class Look(NamedTuple):
    """What one look found."""

    events: list[Event]
    actions: list[ActionRecord]
    changed: set[str]
    """Names of jobs of which anything moved, the loss included."""


class Monitor:
    """Sees all jobs of a session; the caller brings the scheduler's answers and the clock."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._book = RuleBook(session.experiment.monitoring, [])
        self._known_jobs: set[str] = set()
        self._watches: defaultdict[str, JobWatch] = defaultdict(JobWatch)
        # Seen and not yet on disk: kept when a write fails, as on a full disk.
        self._unwritten: list[Event] = []
        self._urgent: set[str] = set()
        # On disk and not yet told to the caller.
        self._events: list[Event] = []
        self._actions: list[ActionRecord] = []
        session.write_first = self._write_down
        session.notice = self.notice

    def tickets(self) -> list[Ticket]:
        """The attempts to ask the scheduler about, all in one query."""
        return [
            self._session.ticket(attempt)
            for job in self._session.jobs.values()
            for attempt in job.open_attempts
            if attempt.job_id is not None
        ]

    def look(self, sightings: Mapping[str, Sighting]) -> Look:
        """Look at every job once and write down what changed.

        Raises OSError when the session cannot be written; what was seen is kept for the next look.
        """
        self._heed_new_jobs()
        changed: set[str] = set()
        for name, job in self._session.jobs.items():
            open_attempts = job.open_attempts
            if job.is_over and not open_attempts:
                continue
            before, watch = len(self._unwritten), self._watches[name]
            self._look_at(job, watch, open_attempts, sightings)
            if len(self._unwritten) > before or watch.dirty:
                changed.add(name)
        self._unwritten += self._overview(self._unwritten)
        self._unwritten += ready(self._session)
        self._write_down()
        self._save_records()
        changed |= self._give_up()
        events, actions = self._events, self._actions
        self._events, self._actions = [], []
        return Look(events, actions, changed)

    def flush(self) -> None:
        """Write down what moved since the last look that was worth a write."""
        for name, watch in self._watches.items():
            if watch.dirty:
                self._save(self._session.jobs[name])

    # Looking

    def _look_at(
        self,
        job: JobRecord,
        watch: JobWatch,
        open_attempts: Sequence[Attempt],
        sightings: Mapping[str, Sighting],
    ) -> None:
        # State first, log second: the last lines of a finished job are still read.
        for attempt in open_attempts:
            sighting = sightings.get(attempt.key)
            if sighting is not None:
                before = attempt.model_copy()
                self._unwritten += apply(job.spec.name, attempt, sighting)
                watch.dirty |= attempt != before
        current = job.attempt
        if current is None or job.is_over or current.verdict is not None:
            return  # a new attempt has a log of its own
        ended = not current.is_open and current.verdict is None
        watched = self._book.watched(job.spec)
        try:
            self._unwritten.extend(watch.read_log(job, current, watched, final=ended))
            self._unwritten += watch.find_checkpoints(job, current, watched, ended=ended)
        except OSError as error:
            # Of this job nothing can be said now; the others are looked at all the same.
            watch.cannot_read(job, error)
            return
        watch.can_read(job)
        if watched.inactivity_rules:
            self._unwritten += watch.stands_still(job, current, watched)
        if ended and watch.at_end and not self._awaits_decision(job, current):
            self._unwritten.append(self._judge(job, current))

    def _awaits_decision(self, job: JobRecord, attempt: Attempt) -> bool:
        """Whether a rule may still say what the end of an attempt means."""
        if not self._book.ends_attempts or job.cancel_requested or job.ending:
            return False
        known = self._session.actions
        fresh = [
            action
            for event in self._unwritten
            if event.job == job.spec.name
            for action in decide(event, self._book.of(event), known)
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
        judgement = with_scores(job, judge(job, attempt, most_without_progress=most))
        attempt.verdict = judgement.verdict
        if made_progress(job, attempt):
            job.attempts_without_progress = 0
        elif counts(job, attempt):
            job.attempts_without_progress += 1
        if judgement.verdict is Verdict.CONTINUE:
            # What comes next, queued ahead or not, starts from here and has a log of its own.
            job.cursor, job.tail = LogCursor(), []
            for later in job.open_attempts:
                later.first_iteration = saved_iteration(job)
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
        """Write what was seen: actions, then events. No job is written before (`write_first`)."""
        for event in self._unwritten:
            self._decide(event)
        self._events += self._session.record(self._unwritten)
        self._urgent |= {event.job for event in self._unwritten}
        self._unwritten = []

    def _decide(self, event: Event) -> None:
        for action in decide(event, self._book.of(event), self._session.actions):
            self._session.save_action(action)
            self._actions.append(action)

    def notice(self, events: list[Event]) -> None:
        """Take note of what an action brought about, as if it had been seen."""
        self._unwritten += events
        self._write_down()

    def _overview(self, fresh: list[Event]) -> list[Event]:
        """What became true of the session as a whole."""
        return overview(self._session, self._book.session_rules, fresh)

    def _save_records(self) -> None:
        every = self._session.experiment.monitoring.save_progress_every_s
        now = time.monotonic()
        due = {
            n for n, watch in self._watches.items() if watch.dirty and now - watch.saved_at >= every
        }
        if not due and not self._urgent:
            return
        for name, job in self._session.jobs.items():
            if name in due or name in self._urgent:
                self._save(job)
                self._urgent.discard(name)

    def _heed_new_jobs(self) -> None:
        """Learn the rules of jobs that joined; a checkpoint may have been there before them."""
        new = set(self._session.jobs) - self._known_jobs
        if not new:
            return
        specs = [job.spec for job in self._session.jobs.values()]
        self._book = RuleBook(self._session.experiment.monitoring, specs)
        for event in self._session.checkpoints():
            if self._book.starts_any(event, new):
                self._decide(event)
        self._known_jobs |= new

    def _save(self, job: JobRecord) -> None:
        watch = self._watches[job.spec.name]
        # Rows before the cursor: a kill in between repeats rows, and readers let the last count.
        self._session.log_progress(job, watch.rows)
        self._session.save_job(job)
        watch.saved()

    def _give_up(self) -> set[str]:
        """End jobs that nothing will submit: cancelled ones, cooldowns without a checkpoint."""
        given_up = set()
        for name, job in self._session.jobs.items():
            if job.is_over or job.open_attempts:
                continue
            reason = self._hopeless(job)
            if reason is not None:
                finishes = job.ending is not None and job.ending.verdict is Verdict.FINISHED
                if not finishes:
                    self.notice([JobGivenUp(job=name, reason=reason, retries=job.retries)])
                verdict = Verdict.FINISHED if finishes else Verdict.FAILED
                self._session.settle(job, verdict, reason)
                self._urgent.discard(name)
                given_up.add(name)
        return given_up

    def _stopped(self) -> str | None:
        """Why nothing more starts, once what was running has ended."""
        jobs = self._session.jobs.values()
        if self._session.experiment.budget.stop_above is None:
            return None
        if any(job.open_attempts for job in jobs):
            return None
        return over_budget(self._session.experiment.budget, jobs)

    def _hopeless(self, job: JobRecord) -> str | None:
        if job.cancel_requested:
            return f"cancelled: {job.cancel_requested}"
        if job.ending is not None:
            return job.ending.reason
        if (stopped := self._stopped()) is not None:
            return stopped
        if job.launched:
            return None
        launches = [
            action
            for action in self._session.actions.starts_of(job.spec.name)
            if self._session.is_valid(action.event)
        ]
        if any(not action.is_settled for action in launches):
            return None
        if launches:
            return f"could not be launched: {launches[-1].reason}"
        if job.spec.awaits:
            return hopeless(job.spec, self._session.jobs)
        parent = self._session.jobs.get(job.spec.parent or "")
        if parent is None or not parent.is_over or job.spec.branch is None:
            return None
        return (
            f"never started: {parent.spec.name} ended ({parent.reason}) "
            f"without a complete checkpoint at iteration {job.spec.branch.iteration}"
        )


def _may_change(action: Action, job: JobRecord) -> bool:
    """Whether an action that is yet to be done may change what the end of an attempt means."""
    if job.restart is None:
        return isinstance(action, ENDS_AN_ATTEMPT)
    # A restart is asked for: it may yet become one with a roll back, or be overruled.
    rolls_back = isinstance(action, Restart) and action.roll_back
    return isinstance(action, Finish | Fail) or (rolls_back and job.restart.roll_back_to is None)
