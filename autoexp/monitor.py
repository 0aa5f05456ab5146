"""The one monitor of a session: looks at logs, checkpoint folders and the scheduler's answers.

`look` changes records in memory, says what happened, and writes it down in an order in which a kill
loses nothing: actions, then events, then the records with their log cursors. What was not written
is seen again at the next look, under the same keys.
"""

import time
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from autoexp import states
from autoexp.events import (
    AttemptJudged,
    Event,
    JobGivenUp,
    StateChanged,
)
from autoexp.jobs import Attempt, JobRecord, Verdict, gpu_hours, now
from autoexp.logtail import LogCursor
from autoexp.rules import ActionRecord, ActionStatus, Rule, decide, rules_of
from autoexp.schedulers.base import Sighting, Ticket
from autoexp.session import Session
from autoexp.verdicts import judge, made_progress, saved_iteration
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
        self._rules: tuple[Rule, ...] = ()
        self._known_jobs = 0
        self._watches: defaultdict[str, JobWatch] = defaultdict(JobWatch)
        # Seen and not yet on disk: kept when a write fails, as on a full disk.
        self._unwritten: list[Event] = []
        self._urgent: set[str] = set()
        # On disk and not yet told to the caller.
        self._events: list[Event] = []
        self._actions: list[ActionRecord] = []
        session.write_first = self._write_down

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
        changed: set[str] = set()
        for name, job in self._session.jobs.items():
            if job.is_over and not job.open_attempts:
                continue
            before = len(self._unwritten)
            self._look_at(job, sightings)
            if len(self._unwritten) > before or self._watches[name].dirty:
                changed.add(name)
        self._write_down()
        self._save_records()
        self._heed_new_jobs()
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

    def _look_at(self, job: JobRecord, sightings: Mapping[str, Sighting]) -> None:
        # State first, log second: the last lines of a finished job are still read.
        watch = self._watches[job.spec.name]
        for attempt in job.open_attempts:
            sighting = sightings.get(attempt.key)
            if sighting is not None:
                before = attempt.model_copy()
                self._unwritten += _apply(job, attempt, sighting)
                watch.dirty |= attempt != before
        current = job.attempt
        if current is None or job.is_over:
            return
        ended = not current.is_open and current.verdict is None
        try:
            self._unwritten.extend(watch.read_log(job, current, final=ended))
            self._unwritten += watch.find_checkpoints(job, ended=ended)
        except OSError as error:
            # Of this job nothing can be said now; the others are looked at all the same.
            watch.cannot_read(job, error)
            return
        watch.can_read(job)
        if ended:
            self._unwritten.append(self._judge(job, current))

    def _judge(self, job: JobRecord, attempt: Attempt) -> AttemptJudged:
        most = self._session.experiment.monitoring.max_attempts_without_progress
        judgement = judge(job, attempt, most_without_progress=most)
        attempt.verdict = judgement.verdict
        if made_progress(job, attempt):
            job.attempts_without_progress = 0
        else:
            job.attempts_without_progress += 1
        if judgement.verdict is Verdict.CONTINUE:
            # What comes next, queued ahead or not, starts from here and has a log of its own.
            job.cursor = LogCursor()
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
        for action in decide(event, self._rules, self._session.actions):
            self._session.save_action(action)
            self._actions.append(action)

    def _save_records(self) -> None:
        every = self._session.experiment.monitoring.save_progress_every_s
        for name, job in self._session.jobs.items():
            watch = self._watches[name]
            due = watch.dirty and time.monotonic() - watch.saved_at >= every
            if name in self._urgent or due:
                self._save(job)
                self._urgent.discard(name)

    def _heed_new_jobs(self) -> None:
        """Learn the rules of jobs that joined; a checkpoint may have been there before them."""
        if len(self._session.jobs) == self._known_jobs:
            return
        self._rules = rules_of(self._session.plan)
        for event in self._session.journal.checkpoints():
            self._decide(event)
        self._known_jobs = len(self._session.jobs)

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
                self._events += self._session.record([JobGivenUp(job=name, reason=reason)])
                self._session.settle(job, Verdict.FAILED, reason)
                given_up.add(name)
        return given_up

    def _hopeless(self, job: JobRecord) -> str | None:
        if job.cancel_requested:
            return f"cancelled: {job.cancel_requested}"
        if job.launched:
            return None
        launches = [a for a in self._session.actions.values() if a.action.job == job.spec.name]
        if any(a.status in (ActionStatus.PENDING, ActionStatus.RUNNING) for a in launches):
            return None
        if launches:
            return f"could not be launched: {launches[-1].reason}"
        parent = self._session.jobs.get(job.spec.parent or "")
        if parent is None or not parent.is_over or job.spec.branch is None:
            return None
        return (
            f"never started: {parent.spec.name} ended ({parent.reason}) "
            f"without a complete checkpoint at iteration {job.spec.branch.iteration}"
        )


def _apply(job: JobRecord, attempt: Attempt, sighting: Sighting) -> list[Event]:
    """Take a sighting over into the attempt."""
    requeued = states.is_running(attempt.state) and not states.is_running(sighting.state)
    if requeued and not states.is_terminal(sighting.state) and attempt.started_at is not None:
        attempt.earlier_gpu_hours += gpu_hours(attempt, attempt.started_at, now())
        attempt.started_at = None
    attempt.exit_code, attempt.signal = sighting.exit_code, sighting.signal
    attempt.nodes = sighting.nodes or attempt.nodes
    attempt.started_at = sighting.started_at or attempt.started_at
    attempt.ended_at = sighting.ended_at or attempt.ended_at
    attempt.warned |= sighting.warned
    old, attempt.reason = attempt.state, sighting.reason
    if sighting.state == old:
        return []
    attempt.state = sighting.state
    attempt.transitions += 1
    return [
        StateChanged(
            job=job.spec.name,
            attempt=attempt.number,
            position=attempt.transitions,
            old=old,
            new=sighting.state,
            reason=sighting.reason,
        )
    ]
