"""A session of single commands on the real cluster, submitted and watched as flows do it."""

import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from autoexp.config.compose import compose
from autoexp.jobs.record import Attempt, JobRecord
from autoexp.monitor.monitor import Monitor
from autoexp.payload import processes_with_cookie
from autoexp.resources.machines import SlurmCluster
from autoexp.rules.events import StateChanged
from autoexp.schedulers.base import AttemptRef, JobStatus, SubmitOptions, prepare, submit_once
from autoexp.schedulers.slurm.scheduler import SlurmScheduler
from autoexp.session.session import Session
from autoexp.states import Kind
from tests.builders import create
from tests.patience import PATIENCE_S, until

# One CPU and little memory each, and no GPU: two dozen at once.
SMALL_JOB: dict[str, Any] = {
    "partition": "main",
    "cpus_per_task": 1,
    "time_limit_min": 10,
    "warn_before_limit_s": 0,
    "query_timeout_s": 60,
}
WITHOUT_JOBS = ["slurm=local_cluster", "cooldowns=[]"]
FOR_EVER = ("sleep", "600")


def slurm(*arguments: str) -> str:
    """Ask SLURM ourselves, behind the back of what is tested."""
    real = os.environ["PATH"].split(":")
    path = ":".join(folder for folder in real if "autoexp-commands" not in folder)
    answer = subprocess.run(
        arguments,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert answer.returncode == 0, f"{arguments}: {answer.stderr}"
    return answer.stdout


def cluster(**settings: Any) -> SlurmCluster:
    """Settings of a small job on the test cluster; `options` are added to the usual ones."""
    options = {"mem": "100M", **settings.pop("options", {})}
    return SlurmCluster(**{**SMALL_JOB, **settings, "options": options})


class Bench:
    """Jobs of one session, one command each."""

    def __init__(self, path: Path) -> None:
        self.session = Session.load(path)
        self._trunk = self.session.jobs.pop("demo").spec
        self.scheduler = SlurmScheduler(cluster())
        self._monitor: Monitor | None = None

    @classmethod
    def create(cls, root: Path) -> Self:
        """A new session without jobs."""
        return cls(create(compose("demo", WITHOUT_JOBS), root))

    @property
    def jobs(self) -> dict[str, JobRecord]:
        return self.session.jobs

    def attempt(self, name: str) -> Attempt:
        return self.jobs[name].attempts[-1]

    def ref(self, name: str) -> AttemptRef:
        return self.session.ref(self.attempt(name))

    def refs(self, names: Sequence[str] = ()) -> list[AttemptRef]:
        return [self.ref(name) for name in names or self.jobs]

    def add(
        self,
        name: str,
        command: Sequence[str] = ("true",),
        *,
        kind: Kind = Kind.COMMAND,
        **settings: Any,
    ) -> JobRecord:
        """Write a job down that runs a command; only trainings have a launcher."""
        output = self.session.path / "output" / name
        mine = {
            "name": name,
            "kind": kind,
            "machine": cluster(**settings),
            "command": tuple(command),
            "output_dir": str(output),
            "save_dir": str(output),
            "target_iteration": None,
        }
        job = JobRecord(spec=self._trunk.model_copy(update=mine), launched=True)
        self.session.jobs[name] = job
        self.session.save_job(job)
        self._monitor = None
        return job

    def begin(self, name: str) -> Attempt:
        """Write the intent of an attempt down."""
        attempt = self.session.begin_attempt(self.jobs[name])
        assert attempt is not None
        return attempt

    def send(self, name: str, *, fresh: bool) -> str:
        """Submit what is intended, in the order of the flows' submit task; returns the job id."""
        spec, attempt = self.jobs[name].spec, self.attempt(name)
        ref = self.session.ref(attempt)
        prepare(ref, spec, attempt, self.scheduler.payload_spec(spec, attempt))
        request = SubmitOptions(
            attempt.name, attempt.log, spec.machine, attempt.time_limit_min, attempt.after
        )
        job_id = submit_once(ref, request, self.scheduler, fresh=fresh)
        self.session.record_submission(self.jobs[name], attempt, job_id)
        return job_id

    def submit(self, name: str, command: Sequence[str] = ("true",), **settings: Any) -> str:
        """Submit a command as a job of its own; returns the job id."""
        self.add(name, command, **settings)
        self.begin(name)
        return self.send(name, fresh=True)

    def look(self) -> dict[str, JobStatus]:
        """One look of the monitor at all jobs."""
        if self._monitor is None:
            self._monitor = Monitor(self.session)
        statuses = self.scheduler.query(self._monitor.refs())
        self._monitor.look(statuses)
        return statuses

    def watch(
        self, condition: Callable[[], Any], what: str, *, seconds: float = PATIENCE_S
    ) -> None:
        """Look, until the condition holds."""

        def looked() -> Any:
            self.look()
            return condition()

        until(looked, what, seconds=seconds)

    def wait(self, state: str, *names: str, seconds: float = PATIENCE_S) -> None:
        """Watch until all the named jobs are in a state, by which they may well go on."""

        def reached() -> bool:
            return all(state in (*self.history(name), self.attempt(name).state) for name in names)

        self.watch(reached, f"{state} of {', '.join(names)}", seconds=seconds)

    def history(self, name: str) -> list[str]:
        """States the job has been seen in, in order."""
        seen = [entry.event for entry in self.session.journal.entries]
        return [e.new for e in seen if isinstance(e, StateChanged) and e.job == name]

    def log(self, name: str) -> str:
        """What the job has written so far."""
        path = Path(self.attempt(name).log)
        return path.read_text() if path.exists() else ""

    def real_jobs(self, name: str) -> set[str]:
        """Ids of all jobs that SLURM ever had under the attempt's key."""
        key = self.attempt(name).key
        queued = slurm("squeue", "-h", "-t", "all", "--name", key, "-o", "%i").split()
        past = slurm("sacct", "-X", "-n", "-P", "-S", "now-1hour", "--name", key, "-o", "JobID")
        return {*queued, *past.split()}

    def output(self, name: str, file: str) -> Path:
        """A file that the job's command writes in its directory."""
        return Path(self.jobs[name].spec.output_dir) / file

    def processes(self, *names: str) -> list[int]:
        """Processes of the named jobs, or of all, on whatever node."""
        keys = [a.key for name in names or self.jobs for a in self.jobs[name].attempts]
        return [pid for key in keys for pid in processes_with_cookie(key)]

    def close(self) -> None:
        """Cancel what is left, whoever submitted it, and end the processes of dead nodes."""
        clear_queue(self.session.id)
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)


def clear_queue(session_id: str) -> None:
    """Cancel the session's jobs and wait until they are gone: the next test needs their room."""

    def left() -> list[str]:
        rows = [row.split(" ", 1) for row in slurm("squeue", "-h", "-o", "%i %j").splitlines()]
        return [job_id for job_id, name in rows if name.startswith(f"{session_id}-")]

    if ids := left():
        slurm("scancel", *ids)
        until(lambda: not left(), f"the end of the jobs of {session_id}")
