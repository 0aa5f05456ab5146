"""Does a drill: starts its session, disturbs it at each hold of the training, and ends it."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from autoexp import states
from autoexp.errors import AutoexpError
from autoexp.jobs.record import Attempt, JobRecord
from autoexp.model import now
from autoexp.nodes.avoid_list import AvoidList
from autoexp.operations.drill import cluster, setting
from autoexp.operations.drill.guard import BY, Guard, end_jobs, let_go
from autoexp.operations.drill.judgement import Records, Trial
from autoexp.operations.drill.monitor import Monitor
from autoexp.resources.machines import SlurmCluster
from autoexp.rules.events import CheckpointComplete, DiskBudgetPassed
from autoexp.schedulers.base import AttemptRef
from autoexp.session import find
from autoexp.session.inbox import BudgetRequest, enqueue
from autoexp.session.session import Session
from autoexp.states import Kind
from autoexp.storage import atomic, migrations

_TICK_S = 0.2
_AT_ONCE_S = 0.005
_SILENT_S = 10.0
_PATIENCE_S = 300.0
_QUEUE_PATIENCE_S = 1800.0
_LEAST_GPU_HOURS = 1e-9
_LEAST_LOOKS_S = 5.0

T = TypeVar("T")


class Missed(Exception):
    """Something that was waited for did not happen."""


class Done(NamedTuple):
    """What a drill has done."""

    trials: list[Trial]
    stopped: str
    """Why it ended before its last exercise; empty otherwise."""
    records: Records


def conduct(
    path: Path, home: Path, blocked: Mapping[str, str], notify: Callable[[str], None]
) -> Done:
    """Run all exercises but those that are blocked on the session in `path`; nobody watches it yet.

    ``home`` is a directory for Prefect alone. However this ends, no job of the session is left.
    """
    return _Drill(path, home, blocked, notify).run()


class _Drill:
    """One session, its monitor, and what is done to both."""

    def __init__(
        self, path: Path, home: Path, blocked: Mapping[str, str], notify: Callable[[str], None]
    ) -> None:
        self._path, self._blocked, self._notify = path, blocked, notify
        session = Session.load(path)
        self._machine = session.experiment.slurm
        self._look_s = session.experiment.monitoring.file_tick_s
        self._trunk = next(
            name for name, job in session.jobs.items() if job.spec.kind is Kind.TRAIN
        )
        self._branches = {
            job.spec.branch.iteration: name
            for name, job in session.jobs.items()
            if job.spec.branch is not None
        }
        atomic.make_directory(setting.holds_below(path))
        for at in setting.HOLDS.values():
            atomic.write(setting.holds_below(path) / str(at), "")
        log = setting.log_of(path)
        self._monitor = Monitor(path, home, log)
        self._guard = Guard(path, home, log)
        self._trials: list[Trial] = []

    def run(self) -> Done:
        """Do one exercise after the other, until the session has ended."""
        stopped = ""
        began = now()
        try:
            self._notify("making a database for Prefect's server")
            self._monitor.prepare()
            self._monitor.start()
            self._notify(f"session {self._path.name}; Ctrl-C ends it and cancels its jobs")
            for exercise in (
                self._sick_node,
                self._kill_monitor,
                self._end_server,
                self._kill_step,
                self._cancel_job,
                self._fill_budget,
            ):
                exercise()
            self._fill_disk(began)
            self._finish(began)
        except Missed as missed:
            stopped = f"the drill had ended before: {missed}"
        finally:
            self._end()
        return Done(self._trials, stopped, self._records())

    # The exercises

    def _sick_node(self) -> None:
        self._wait_for("the first attempt", lambda: self._job().attempts, queued=True)
        began = self._job().attempts[0].intended_at
        if setting.SICK_NODE in self._blocked:
            return
        with self._trying(setting.SICK_NODE, "a check calls the first node sick", began) as tried:
            tried(attempt=1)
            given_back = "the sick node's attempt to be given back, and another one to train"
            self._wait_for(given_back, lambda: self._trains(after=1), queued=True)

    def _kill_monitor(self) -> None:
        name = self._branches[setting.MONITOR_AT]
        with self._trying(setting.MONITOR) as tried:
            what = f"checkpoint {setting.MONITOR_AT} and its cooldown"
            self._wait_for(what, lambda: self._job(name).attempts, queued=True, pause=_AT_ONCE_S)
            began, beside = now(), self._job().attempts[-1].number
            self._monitor.kill()
            known = self._job(name).attempts[0].job_id is not None
            when = "just after its submission" if known else "before its job id was recorded"
            did = f"SIGKILL to the monitor as it submitted {name}, {when}"
            tried(did=did, began=began, job=name, attempt=beside)
            self._monitor.start()
            self._wait_for("the next monitor", self._is_watched)
            self._wait_for(f"{name} to be known", lambda: self._job(name).attempts[0].job_id)

    def _end_server(self) -> None:
        name, at = self._branches[setting.SERVER_AT], setting.SERVER_AT
        did = f"SIGKILL to Prefect's server, and none until {name} is submitted"
        with self._trying(setting.SERVER, did) as tried:
            with self._monitor.outage():
                tried(began=now(), job=name)
                let_go(self._path, setting.SERVER)
                submitted = f"checkpoint {at} and the submission of its cooldown"
                self._wait_for(submitted, lambda: self._is_submitted(name))
                tried(ended=now())
            self._wait_for("the server to answer again", self._monitor.server_answers)

    def _kill_step(self) -> None:
        self._kill(setting.STEP, lambda ref: cluster.kill_step(self._machine, ref))
        let_go(self._path, setting.STEP)

    def _cancel_job(self) -> None:
        machine = self._machine
        if isinstance(machine, SlurmCluster):
            self._kill(setting.JOB, lambda ref: cluster.cancel_job(machine, ref))
        let_go(self._path, setting.JOB)

    def _kill(self, exercise: str, kill: Callable[[AttemptRef], str]) -> None:
        """Kill the training where it waits, and see that the next attempt trains."""
        with self._trying(exercise) as tried:
            at = setting.HOLDS[exercise]
            self._wait_for(f"iteration {at}", lambda: (self._job().iteration or 0) >= at)
            attempt = self._wait_for("the training to run", self._trains)
            assert attempt is not None
            tried(began=now(), attempt=attempt.number, saved=self._job().saved_iteration)
            tried(did=kill(Session.load(self._path).ref(attempt)))
            after = attempt.number
            self._wait_for("the next attempt", lambda: self._trains(after=after), queued=True)

    def _fill_budget(self) -> None:
        if setting.BUDGET in self._blocked:
            return
        name, at = self._branches[setting.BUDGET_AT], setting.BUDGET_AT
        did = f"`budget.stop_above` below what is used, before {name} is due"
        with self._trying(setting.BUDGET, did) as tried:
            self._limit(_LEAST_GPU_HOURS)
            tried(began=now(), job=name)
            let_go(self._path, setting.BUDGET)
            self._wait_for(f"checkpoint {at}", lambda: at in self._job().checkpoints)
            # Several looks, at each of which it could have been submitted.
            looks_s = max(_LEAST_LOOKS_S, 3 * self._look_s)
            until = time.monotonic() + looks_s
            self._wait_for("some looks", lambda: time.monotonic() > until)
            tried(ended=now())
            self._limit(None)
            self._wait_for(f"{name} to be submitted", lambda: self._is_submitted(name))

    def _fill_disk(self, began: datetime) -> None:
        """See that the checkpoints so far, too many for their budget, were warned of."""
        did = "`retention.budget` below what two checkpoints take"
        with self._trying(setting.DISK, did, began) as tried:
            warned = self._wait_for("the warning of its checkpoints", self._disk_warning)
            assert warned is not None
            tried(ended=warned[0])

    def _disk_warning(self) -> tuple[datetime, str] | None:
        for entry in Session.load(self._path).journal.entries:
            if isinstance(entry.event, DiskBudgetPassed):
                return entry.time, entry.event.message
        return None

    def _finish(self, began: datetime) -> None:
        """Wait for the end of the session and of its monitor."""
        let_go(self._path, *setting.HOLDS)
        with self._trying(setting.WHOLE, "everything above, in one session", began):
            until = time.monotonic() + _QUEUE_PATIENCE_S
            self._notify("waiting for all jobs to end")
            while self._monitor.exit_code is None:
                if time.monotonic() > until:
                    raise Missed(f"the session did not end within {_QUEUE_PATIENCE_S:.0f} s")
                time.sleep(_TICK_S)

    # What the exercises are made of

    @contextmanager
    def _trying(
        self, exercise: str, did: str = "", began: datetime | None = None
    ) -> Iterator[Callable[..., None]]:
        """Record what is done within as a trial; the function that is yielded adds to it."""
        trial = Trial(exercise, did, began or now(), now())
        given = {"ended": False}

        def tried(**values: Any) -> None:
            nonlocal trial
            given["ended"] |= "ended" in values
            trial = trial._replace(**values)
            if "did" in values:
                self._notify(f"{exercise}: {values['did']}")

        if did:
            self._notify(f"{exercise}: {did}")
        try:
            yield tried
        except (Missed, AutoexpError, OSError) as error:
            self._trials.append(trial._replace(ended=now(), missed=str(error)))
            raise Missed(f"{exercise}: {error}") from error
        self._trials.append(trial if given["ended"] else trial._replace(ended=now()))

    def _wait_for(
        self, what: str, test: Callable[[], T], *, queued: bool = False, pause: float = _TICK_S
    ) -> T:
        """Wait until a test says yes; raises Missed after a time, or once the monitor has ended."""
        patience_s = _QUEUE_PATIENCE_S if queued else _PATIENCE_S
        began = time.monotonic()
        deadline, is_told = began + patience_s, False
        while not (found := test()):
            if (code := self._monitor.exit_code) is not None:
                said = self._monitor.last_words
                raise Missed(f"the monitor ended (exit code {code}) before {what}: {said}")
            if time.monotonic() > deadline:
                raise Missed(f"waited {patience_s:.0f} s for {what}")
            if not is_told and time.monotonic() > began + _SILENT_S:
                is_told = True
                self._notify(f"waiting for {what}")
            time.sleep(pause)
        return found

    def _job(self, name: str | None = None) -> JobRecord:
        """A job as it is on disk, the training by default."""
        return migrations.read(self._path / "jobs" / f"{name or self._trunk}.json", JobRecord)

    def _trains(self, after: int = 0) -> Attempt | None:
        """The training's attempt that has logged an iteration and runs, behind a number."""
        return next(
            (
                attempt
                for attempt in self._job().attempts
                if attempt.number > after
                and attempt.first_logged
                and states.is_running(attempt.state)
            ),
            None,
        )

    def _is_submitted(self, name: str) -> bool:
        attempts = self._job(name).attempts
        return bool(attempts) and attempts[0].job_id is not None

    def _is_watched(self) -> bool:
        """True once the monitor that was started last holds the session."""
        holder = find.live_holder(Session.part(self._path, [], []))
        return holder is not None and holder.pid == self._monitor.pid

    def _limit(self, gpu_hours: float | None) -> None:
        """Have the monitor change the budget, and wait until it has."""
        enqueue(self._path, BudgetRequest(stop_above=gpu_hours, by=BY))

        def is_changed() -> bool:
            found = Session.part(self._path, [], [])
            return found.experiment.budget.stop_above == gpu_hours

        self._wait_for("the budget to be changed", is_changed)

    # The end

    def _end(self) -> None:
        """Let nothing of this be left: no hold, no monitor, no job, no server."""
        self._monitor.stop()
        end_jobs(self._path, self._notify)
        self._monitor.wait_for_server_to_end()
        self._guard.dismiss()

    def _records(self) -> Records:
        session = Session.load(self._path)
        attempts = [a for job in session.jobs.values() for a in job.attempts]
        completed = {
            (entry.event.job, entry.event.iteration): entry.time
            for entry in session.journal.entries
            if isinstance(entry.event, CheckpointComplete)
        }
        gone = [
            (event.job, event.iteration)
            for event in session.journal.checkpoints()
            if not Path(event.path).is_dir()
        ]
        warning, retention = self._disk_warning(), session.experiment.retention
        avoided: list[str] = []
        with suppress(OSError):
            listed = AvoidList(setting.avoided_below(self._path)).current(now())
            avoided = [entry.node for entry in listed]
        return Records(
            jobs=session.jobs,
            completed=completed,
            submitted=cluster.submitted(self._machine, [session.ref(a) for a in attempts]),
            nodes=cluster.node_names(self._machine, {a.key: a.nodes for a in attempts}),
            avoided=avoided,
            kept_every=retention.every if retention else (),
            gone=gone,
            disk_warning=warning[1] if warning else "",
            prefect_has_all=self._monitor.prefect_has_all,
        )
