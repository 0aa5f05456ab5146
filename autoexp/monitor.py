"""The one monitor of a session: looks at logs, checkpoint folders and the scheduler's answers.

`look` changes records in memory and says what happened; `commit` writes it down in an order in
which a kill loses nothing: actions, then events, then the records with their log cursors. What
was not written is seen again at the next look, under the same keys.
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
            found = self._look_at(job, sightings)
            self._unwritten += found
            if found or self._watches[name].dirty:
                changed.add(name)
        events, actions = self._commit()
        actions += self._heed_new_jobs()
        given_up = self._give_up()
        return Look(events + given_up, actions, changed | {event.job for event in given_up})

    def flush(self) -> None:
        """Write down what moved since the last look that was worth a write."""
        for name, watch in self._watches.items():
            if watch.dirty:
                self._save(self._session.jobs[name])

    # Looking

    def _look_at(self, job: JobRecord, sightings: Mapping[str, Sighting]) -> list[Event]:
        # State first, log second: the last lines of a finished job are still read.
        events: list[Event] = []
        for attempt in job.open_attempts:
            sighting = sightings.get(attempt.key)
            if sighting is not None:
                events += _apply(job, attempt, sighting)
        current = job.attempt
        if current is None or job.is_over:
            return events
        ended = not current.is_open and current.verdict is None
        watch = self._watches[job.spec.name]
        events += watch.read_log(job, current, final=ended)
        events += watch.find_checkpoints(job, ended=ended)
        if ended:
            events.append(self._judge(job, current))
        return events

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

    def _commit(self) -> tuple[list[Event], list[ActionRecord]]:
        events = self._unwritten
        actions = [
            action
            for event in events
            for action in decide(event, self._rules, self._session.actions)
        ]
        for action in actions:
            self._session.save_action(action)
        self._session.record(events)
        urgent = {event.job for event in events}
        every = self._session.experiment.monitoring.save_progress_every_s
        for name, job in self._session.jobs.items():
            watch = self._watches[name]
            if name in urgent or (watch.dirty and time.monotonic() - watch.saved_at >= every):
                self._save(job)
        self._unwritten = []
        return events, actions

    def _heed_new_jobs(self) -> list[ActionRecord]:
        """Learn the rules of jobs that joined; a checkpoint may have been there before them."""
        if len(self._session.jobs) == self._known_jobs:
            return []
        self._rules = rules_of(self._session.plan)
        actions = [
            action
            for event in self._session.journal.checkpoints()
            for action in decide(event, self._rules, self._session.actions)
        ]
        for action in actions:
            self._session.save_action(action)
        self._known_jobs = len(self._session.jobs)
        return actions

    def _save(self, job: JobRecord) -> None:
        watch = self._watches[job.spec.name]
        # Rows before the cursor: a kill in between repeats rows, and readers let the last count.
        self._session.log_progress(job, watch.rows)
        self._session.save_job(job)
        watch.saved()

    def _give_up(self) -> list[Event]:
        """End jobs that nothing will submit: cancelled ones, cooldowns without a checkpoint."""
        events: list[Event] = []
        for name, job in self._session.jobs.items():
            if job.is_over or job.open_attempts:
                continue
            reason = self._hopeless(job)
            if reason is None:
                continue
            event = JobGivenUp(job=name, reason=reason)
            self._session.record([event])
            self._session.settle(job, Verdict.FAILED, reason)
            events.append(event)
        return events

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
