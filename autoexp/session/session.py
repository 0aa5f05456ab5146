"""The session on disk: the truth about an experiment, whoever opens it can carry on."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from functools import wraps
from math import isnan
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from autoexp import names, sinks, states
from autoexp.config.experiment import Experiment
from autoexp.errors import BadInput, SessionDamaged
from autoexp.jobs.limits import chain_length, room, time_limit
from autoexp.jobs.record import Attempt, JobRecord
from autoexp.jobs.spec import JobSpec
from autoexp.jobs.summary import in_order, place_of
from autoexp.model import now
from autoexp.planning.plan import Plan
from autoexp.resources.pools import HeldSlots
from autoexp.rules.events import AttemptRefused, CancelAnswered, CheckpointComplete, Event, JobReady
from autoexp.rules.metrics import Before
from autoexp.schedulers.base import AttemptRef
from autoexp.session import find, remove
from autoexp.session.action_records import ActionRecord, Actions
from autoexp.session.journal import Journal
from autoexp.session.meta import SessionMeta
from autoexp.states import Verdict
from autoexp.storage import atomic, lease, metrics_file, migrations, permissions
from autoexp.storage.lease import Lease

_MOST_BEFORE = 50
"""Logged losses that the rule `continuity` may look back at."""

P = ParamSpec("P")
T = TypeVar("T")


def _in_a_round(
    write: "Callable[Concatenate[Session, P], T]",
) -> "Callable[Concatenate[Session, P], T]":
    """Decorate a method to write only while the lease is held."""

    @wraps(write)
    def written(session: "Session", /, *args: P.args, **kwargs: P.kwargs) -> T:
        with session.writing():
            return write(session, *args, **kwargs)

    return written


class Session:
    """One session directory. Anybody may read; writing needs the lease (see `hold`)."""

    def __init__(self, path: Path, meta: SessionMeta) -> None:
        self.path = path
        self.meta = meta
        self.jobs: dict[str, JobRecord] = {}
        self.actions = Actions()
        self.journal = Journal(path / "events.jsonl")
        self._changed: set[str] = set()
        self.excluded = ExcludedNodes(path / "blame.json")
        self.requests_left: dict[str, int] = {}
        """Names of requests that could not be processed or removed, with the number of tries.
        """
        self._lease: Lease | None = None

    @property
    def id(self) -> str:
        return self.meta.session

    @property
    def experiment(self) -> Experiment:
        return self.meta.experiment

    @property
    def is_over(self) -> bool:
        """True if every job has its final verdict, and no attempt and no action is left."""
        jobs_are_over = all(job.is_over and not job.open_attempts for job in self.jobs.values())
        return jobs_are_over and not self.actions.pending

    @property
    def plan(self) -> Plan:
        """The plan made when the session was created."""
        return Plan(jobs=tuple(job.spec for job in self.jobs.values()))

    # Reading

    @classmethod
    def load(cls, path: Path, journal: Journal | None = None) -> "Session":
        """Read a session; raises SessionNotFound, or SessionDamaged with the file's path.

        Given the journal of an earlier reading, only what has been appended since is read of it.
        """
        find.must_exist(path)
        session = cls(path, migrations.read(path / "session.json", SessionMeta))
        if journal is not None:
            session.journal = journal
        for file in sorted((path / "jobs").glob("*.json")):
            record = migrations.read(file, JobRecord)
            session.jobs[record.spec.name] = record
        find.refuse_missing(path, session.meta.jobs, session.jobs)
        places = {name: place_of(job.spec) for name, job in session.jobs.items()}
        ordered = in_order(places, session.meta.jobs)
        session.jobs = {name: session.jobs[name] for name in ordered}
        for file in sorted((path / "actions").glob("*.json")):
            action = migrations.read(file, ActionRecord)
            session.actions[action.key] = action
        session.journal.load()
        session.excluded.load()
        return session

    @classmethod
    def part(cls, path: Path, jobs: Iterable[str], actions: Iterable[str]) -> "Session":
        """Read some of a session's jobs and actions, to show them; raises as `load`, of these."""
        session = cls(path, migrations.read(path / "session.json", SessionMeta))
        for name in jobs:
            session.jobs[name] = migrations.read(path / "jobs" / f"{name}.json", JobRecord)
        for key in actions:
            session.actions[key] = migrations.read(path / "actions" / f"{key}.json", ActionRecord)
        return session

    @classmethod
    @contextmanager
    def hold(
        cls, path: Path, guard: AbstractContextManager[None] | None = None
    ) -> Iterator[tuple["Session", Lease]]:
        """Take the lease, enter `guard`, and read; raises SessionHeld, or BadInput for a copy."""
        permissions.refuse_strangers(path)
        find.must_exist(path)
        held = lease.take(path)
        try:
            permissions.refuse_others(path)
            remove.unmark(path)
            with guard or nullcontext():
                migrations.read(path / "session.json", SessionMeta).refuse_elsewhere(path)
                migrations.upgrade_files(path)
                session = cls.load(path)
                session.journal.repair()
                session._lease = held
                yield session, held
        finally:
            held.release()

    # Writing: each file at once and whole, and only by the holder of the lease

    def refuse_lost(self) -> None:
        """Raise SessionHeld once the session is another monitor's; callable from any thread."""
        if self._lease is not None:
            self._lease.refuse_lost()

    def writing(self) -> AbstractContextManager[None]:
        """A round of writes during which nobody can take the lease over (see `Lease.writing`).

        Every write is a round by itself; several may be put into one. Raises SessionHeld
        when another monitor holds the session by now.
        """
        return nullcontext() if self._lease is None else self._lease.writing()

    def room(self) -> int | None:
        """Number of attempts that may still be submitted; None: any number."""
        experiment = self.experiment
        return room(experiment.budget, experiment.slurm.max_jobs, self.jobs.values())

    @_in_a_round
    def save_meta(self) -> None:
        atomic.write(self.path / "session.json", self.meta.model_dump_json(indent=1) + "\n")

    @_in_a_round
    def save_job(self, job: JobRecord) -> None:
        self._changed.add(job.spec.name)
        path = self.path / "jobs" / f"{job.spec.name}.json"
        atomic.write(path, job.model_dump_json(indent=1) + "\n")

    def change_job(self, job: JobRecord, **changes: Any) -> None:
        """Write a job with changes, then apply them in memory: a failed write changes nothing."""
        self.save_job(job.model_copy(update=changes))
        for name, value in changes.items():
            setattr(job, name, value)

    def change_attempt(
        self, job: JobRecord, attempt: Attempt, changes: dict[str, Any], **of_job: Any
    ) -> None:
        """Write an attempt and its job with changes, and only then apply them in memory."""
        changed = attempt.model_copy(update=changes)
        attempts = [changed if other is attempt else other for other in job.attempts]
        self.save_job(job.model_copy(update={**of_job, "attempts": attempts}))
        for name, value in changes.items():
            setattr(attempt, name, value)
        for name, value in of_job.items():
            setattr(job, name, value)

    def change_action(self, action: ActionRecord, **changes: Any) -> None:
        """Write an action with changes, and only then apply them in memory."""
        self.save_action(action.model_copy(update=changes))
        for name, value in changes.items():
            setattr(action, name, value)
        self.actions[action.key] = action

    @_in_a_round
    def save_action(self, action: ActionRecord) -> None:
        action.updated_at = now()
        path = self.path / "actions" / f"{action.key}.json"
        atomic.write(path, action.model_dump_json(indent=1) + "\n")
        self.actions[action.key] = action

    @_in_a_round
    def record(self, events: Iterable[Event]) -> list[Event]:
        """Append the events that are new to the journal and return them."""
        return self.journal.append(events)

    def record_answers(self, answers: Mapping[str, str]) -> None:
        """Record the scheduler's answers to the cancellation of attempts, by their keys."""
        self.record(
            CancelAnswered(job=name, attempt=attempt.number, answer=answers[attempt.key])
            for name, job in self.jobs.items()
            for attempt in job.attempts
            if attempt.key in answers
        )

    @_in_a_round
    def log_progress(self, job: JobRecord, rows: Iterable[str]) -> None:
        """Append metrics rows; a kill may repeat some, so readers let the last one count."""
        text = "".join(rows)
        if text:
            atomic.append(self.path / "metrics" / f"{job.spec.name}.csv", text.encode())

    def take_changed(self) -> set[str]:
        """Names of the jobs that were written, or that a write failed for, since the last call."""
        changed, self._changed = self._changed, set()
        return changed

    def sick_nodes(self, at: datetime) -> tuple[str, ...]:
        """Nodes that checks of this session found sick and that are to be avoided at a time."""
        policy = self.experiment.nodes
        expires_s = policy.expires if policy else 0.0
        found = {
            node: attempt.ended_at
            for job in self.jobs.values()
            for attempt in job.attempts
            for node in attempt.sick_nodes
            if attempt.ended_at and (at - attempt.ended_at).total_seconds() < expires_s
        }
        return tuple(sorted(found, key=lambda node: (found[node], node)))

    # Jobs and attempts

    def job(self, name: str) -> JobRecord:
        """The record of a job; raises BadInput for an unknown name."""
        if name not in self.jobs:
            raise find.no_such_job(self.id, [name], self.jobs)
        return self.jobs[name]

    def add_job(
        self, spec: JobSpec, attempt: Attempt | None = None, *, launched: bool | None = None
    ) -> None:
        """Add a job to the session, if it is not in it; `list_jobs` comes after the last one.

        `attempt` is given for a job that runs already. Raises BadInput for another job's name.
        """
        self.refuse_clash(spec)
        if spec.name not in self.jobs:
            attempts = [] if attempt is None else [attempt]
            if launched is None:
                launched = not spec.waits  # a cooldown for its checkpoint, a stage for siblings
            job = JobRecord(spec=spec, launched=launched, attempts=attempts)
            self.save_job(job)
            self.jobs[spec.name] = job

    def list_jobs(self) -> None:
        """Write the list of jobs, so that a lost file is noticed; once for many jobs."""
        if new := self.jobs.keys() - set(self.meta.jobs):
            self.meta.jobs += sorted(new)
            self.save_meta()

    def refuse_clash(self, spec: JobSpec) -> None:
        """Raise BadInput when another job has this name, or it is too long for this session."""
        known = self.jobs.get(spec.name)
        if known is None:
            names.check_keys(self.id, [spec.name], self.meta.key_tail)
        if known is not None and known.spec != spec:
            raise BadInput(
                f"{spec.name}: {self.id} has another job of this name; "
                "give the new one its own with project.name=NAME"
            )

    def begin_attempt(self, job: JobRecord, slots: HeldSlots | None = None) -> Attempt | None:
        """Record the intent of a new attempt; None while it is unwanted, or the queue is full.

        `slots` were taken for it, and are written down with it.
        """
        if not job.wants_attempt(chain_length(job)):
            return None
        if self.room() == 0:
            return None
        ahead = job.open_attempts
        number = len(job.attempts) + 1
        key = self.meta.key(job.spec.name, number)
        attempt = Attempt(
            number=number,
            key=key,
            name=key,
            log=str(self.path / "attempts" / key / "job.log"),
            intended_at=now(),
            first_iteration=job.saved_iteration,
            before=self.losses_before(job),
            gpus=job.spec.machine.gpus,
            is_local=job.spec.machine.kind == "local",
            time_limit_min=time_limit(job, self.jobs.get(job.spec.parent or "")),
            after=ahead[-1].job_id if ahead else None,
        )
        self.change_job(
            job,
            attempts=[*job.attempts, attempt],
            there_before=self.there_before(job),
            slots=slots or job.slots,
            waits_for_slots=None,
        )
        return attempt

    def there_before(self, job: JobRecord) -> list[int] | None:
        """The checkpoints in a job's folder before its first attempt, where it matters."""
        is_first = not job.attempts and job.spec.target_iteration is not None
        if self.experiment.retention is None or not is_first:
            return job.there_before
        complete = job.spec.trainer.checkpoints(Path(job.spec.save_dir)).complete
        return [found.iteration for found in complete]

    def losses_before(self, job: JobRecord) -> Before | None:
        """What was logged before the checkpoint that the next attempt begins from."""
        rules = self.experiment.monitoring.metric_events.values()
        if not any(rule is not None and rule.continuity is not None for rule in rules):
            return None
        at, branch = job.saved_iteration, job.spec.branch
        is_branching = branch is not None and at == branch.iteration
        source = self.jobs.get(job.spec.parent or "") if is_branching else job
        if source is None or at == 0 or job.spec.target_iteration is None:
            return None
        try:
            rows = metrics_file.read(self.path, source.spec.name)
        except SessionDamaged:
            return None
        last = [row for row in rows if row.iteration <= at][-_MOST_BEFORE:]
        if not last:
            return None
        rate = last[-1].learning_rate
        losses = tuple(row.loss for row in last)
        return Before(at, losses, None if isnan(rate) else rate)

    def record_submission(self, job: JobRecord, attempt: Attempt, job_id: str) -> None:
        """Record that the scheduler accepted the attempt."""
        state = "PENDING" if attempt.state == states.SUBMITTING else attempt.state
        changes = {"job_id": job_id, "submitted_at": now(), "state": state}
        self.change_attempt(job, attempt, changes, warning=None)

    def refuse(self, job: JobRecord, attempt: Attempt, reason: str) -> None:
        """Record that the scheduler refused the attempt, in its own words.

        One that was to be queued ahead ends alone: the job goes on with those that run.
        """
        self.record([AttemptRefused(job=job.spec.name, attempt=attempt.number, reason=reason)])
        changes = {"state": "FAILED", "reason": reason, "ended_at": now()}
        if any(other is not attempt for other in job.open_attempts):
            self.change_attempt(job, attempt, {**changes, "verdict": Verdict.CONTINUE})
            return
        verdict = Verdict.FAILED
        self.change_attempt(
            job,
            attempt,
            {**changes, "verdict": verdict},
            verdict=verdict,
            reason=f"not submitted: {reason}",
        )

    def withdraw(self, job: JobRecord, attempt: Attempt) -> None:
        """Record that an intended attempt was never submitted, and will not be."""
        changes = {"state": "CANCELLED", "reason": "never submitted", "ended_at": now()}
        self.change_attempt(job, attempt, changes)

    def ref(self, attempt: Attempt) -> AttemptRef:
        directory = self.path / "attempts" / attempt.key
        return AttemptRef(
            *(attempt.key, directory, attempt.name, self.meta.script, attempt.job_id),
            is_local=attempt.is_local,
        )

    def submission_ref(self, attempt: Attempt) -> AttemptRef:
        """The submitted job: the attempt itself, or the array that it is a task of."""
        directory = self.path / "attempts" / attempt.name
        name, script = attempt.name, self.meta.script
        return AttemptRef(attempt.key, directory, name, script, is_local=attempt.is_local)

    def settle(self, job: JobRecord, verdict: Verdict, reason: str) -> None:
        """Give a job its final verdict."""
        self.change_job(job, verdict=verdict, reason=reason)

    def is_valid(self, event: Event) -> bool:
        """True if an event is still valid: its checkpoint may have been set aside."""
        job = self.jobs.get(event.job)
        if job is not None and isinstance(event, JobReady):
            return event.retries == job.retries
        if job is None or not isinstance(event, CheckpointComplete):
            return True
        return event.generation == job.generation(event.iteration)

    def checkpoints(self) -> list[CheckpointComplete]:
        """The complete checkpoints that were found, and have been neither set aside nor deleted."""
        return [
            event
            for event in self.journal.checkpoints()
            if self.is_valid(event) and not self.is_deleted(event)
        ]

    def is_deleted(self, event: CheckpointComplete) -> bool:
        """True if a checkpoint was deleted by `retention`, or is being deleted."""
        job = self.jobs.get(event.job)
        return job is not None and event.iteration in job.deleted

    def pending_actions(self) -> list[ActionRecord]:
        """Pending actions, including those that were running when a monitor died."""
        return self.actions.pending


# Nodes that the session excludes


class ExcludedNode(BaseModel):
    """One node and why it is excluded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    node: str
    evidence: str
    """Key of the event that named it."""
    reason: str
    until: datetime


class NodesFile(BaseModel):
    """`blame.json`: the list as it lies on disk."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = migrations.VERSION
    nodes: list[ExcludedNode] = Field(default_factory=list)


class ExcludedNodes:
    """The excluded nodes of one session; only the holder of the lease adds to them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.nodes: list[ExcludedNode] = []

    def load(self) -> None:
        """Read the list; raises SessionDamaged when it does not parse."""
        if self._path.exists():
            self.nodes = migrations.read(self._path, NodesFile).nodes

    def add(self, blamed: Iterable[ExcludedNode]) -> None:
        """Add nodes to the list; known evidence is kept once.

        Raises SessionError for what cannot be the name of a node: it may come from a log, and goes
        to SLURM.
        """
        known = {(entry.node, entry.evidence) for entry in self.nodes}
        fresh = [entry for entry in blamed if (entry.node, entry.evidence) not in known]
        for entry in fresh:
            sinks.node(entry.node)
        if fresh:
            content = NodesFile(nodes=[*self.nodes, *fresh])
            atomic.write(self._path, content.model_dump_json(indent=1) + "\n")
            self.nodes = content.nodes

    def current(self, at: datetime) -> tuple[str, ...]:
        """The nodes to exclude at a time."""
        current = {entry.node for entry in self.nodes if entry.until > at}
        # Whoever wrote the file: an invalid name reaches no command line.
        return tuple(sorted(node for node in current if sinks.is_node(node)))
