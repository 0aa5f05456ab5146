"""A synthetic cluster and its trainers in virtual time: they queue, train, save and fail."""

import heapq
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from autoexp import errors, payload, states
from autoexp.backends.megatron.formats import TORCH_DIST, TRACKER
from autoexp.jobs.record import Attempt
from autoexp.jobs.spec import JobSpec
from autoexp.schedulers.base import AttemptRef, JobStatus, PayloadSpec, SubmitOptions
from bench.world import sessions

HOUR = 3600.0
DAY = 24 * HOUR


class Clock:
    """Seconds since 1970 in the world that is simulated."""

    def __init__(self, start: float) -> None:
        self.seconds = start

    def time(self) -> float:
        return self.seconds

    def time_ns(self) -> int:
        return int(self.seconds * 1e9)

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds

    def now(self, zone: Any = UTC) -> datetime:
        return datetime.fromtimestamp(self.seconds, zone)


class Rates(NamedTuple):
    """How often things go wrong; docs/scaling.md says where the figures come from."""

    node_failures_per_hour: float = 16 * 1.6e-4
    preemptions_per_hour: float = 1e-3
    user_failures_per_attempt: float = 0.005
    fails_within_hours: float = 2.0
    answers_lost_per_submission: float = 0.01
    refused_for_now_per_submission: float = 0.01
    outages_per_day: float = 0.2
    outage_hours: float = 1.0
    queue_hours: float = 0.5
    time_limit_hours: float = 24.0


class Trainer:
    """A job in the queue: it logs and saves, and knows no more than was laid out for it."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.spec: dict[str, Any] = json.loads((directory / "spec.json").read_text())
        self.saves = Path(self.spec["cwd"]) / "checkpoints"
        self.log = Path(self.spec["log"])
        flags = dict(zip(self.spec["command"], self.spec["command"][1:], strict=False))
        self.target, self.interval = self.length(flags)
        self.state = "PENDING"
        self.iteration = 0
        self.started_at: float | None = None
        self.ended_at: float | None = None

    @staticmethod
    def length(flags: Mapping[str, str]) -> tuple[int, int]:
        """The last iteration, and the iterations between two saves."""
        return int(flags["--train-iters"]), int(flags["--save-interval"])

    @property
    def is_alive(self) -> bool:
        return not states.is_terminal(self.state)

    def begin(self, at: float) -> None:
        self.state, self.started_at = "RUNNING", at
        self.iteration = TORCH_DIST.tracked(self.saves) or 0

    def log_line(self, at: float) -> None:
        with self.log.open("ab") as file:
            file.write(sessions.log_lines(self.iteration, 1))
        os.utime(self.log, (at, at))

    def save(self, at: float) -> None:
        sessions.save(self.saves, self.iteration)
        # The clock of files is the virtual one, too: stamps tell whether anything has moved.
        os.utime(self.saves / TRACKER, (at, at))
        assert (self.saves / sessions.folder_name(self.iteration)).is_dir()


class Cluster:
    """Takes jobs, runs some at a time, loses answers, falls silent for hours."""

    SECONDS_PER_ITERATION = 36.0
    LOGGED = 40
    """Iterations between two lines of a log: 24 minutes."""

    def __init__(self, clock: Clock, dice: random.Random, rates: Rates, capacity: int) -> None:
        self.clock, self.rates = clock, rates
        self.jobs: dict[str, Trainer] = {}
        self.submissions: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.checkpoints = 0
        self.program: Callable[[str, Path], Trainer] = Trainer
        """What a job runs, from its name and the attempt's directory."""
        self._dice = dice
        self._capacity = capacity
        self._alive: dict[str, Trainer] = {}
        self._waiting: list[tuple[float, str]] = []
        self._running = 0
        self._next: list[tuple[float, str, str]] = []
        self._silent_until = 0.0
        self._next_outage = clock.time() + self._until(rates.outages_per_day / DAY)

    def _until(self, rate: float) -> float:
        return self._dice.expovariate(rate)

    # The world goes on

    def advance(self) -> None:
        """Let everything happen that happens up to now."""
        now = self.clock.time()
        if now >= self._next_outage:
            self._silent_until = now + self._until(1 / (self.rates.outage_hours * HOUR))
            self._next_outage = now + self._until(self.rates.outages_per_day / DAY)
        while self._waiting and self._running < self._capacity and self._waiting[0][0] <= now:
            _, job_id = heapq.heappop(self._waiting)
            if self.jobs[job_id].is_alive:
                self._start(job_id, now)
        while self._next and self._next[0][0] <= now:
            at, job_id, what = heapq.heappop(self._next)
            if self.jobs[job_id].is_alive:
                self._happen(at, job_id, what)

    def _start(self, job_id: str, at: float) -> None:
        self._running += 1
        job, rates = self.jobs[job_id], self.rates
        job.begin(at)
        ends = [
            (at + rates.time_limit_hours * HOUR, "TIMEOUT"),
            (at + self._until(rates.node_failures_per_hour / HOUR), "NODE_FAIL"),
            (at + self._until(rates.preemptions_per_hour / HOUR), "PREEMPTED"),
        ]
        if self._dice.random() < rates.user_failures_per_attempt:
            within = rates.fails_within_hours * HOUR
            ends.append((at + self._dice.random() * within, "FAILED"))
        end, state = min(ends)
        heapq.heappush(self._next, (end, job_id, state))
        self._plan_step(job_id, at)

    def _plan_step(self, job_id: str, at: float) -> None:
        job = self.jobs[job_id]
        ahead = min(job.iteration // self.LOGGED * self.LOGGED + self.LOGGED, job.target)
        takes = (ahead - job.iteration) * self.SECONDS_PER_ITERATION
        heapq.heappush(self._next, (at + max(takes, 1.0), job_id, "step"))

    def _happen(self, at: float, job_id: str, what: str) -> None:
        job = self.jobs[job_id]
        if what != "step":
            self._end(job_id, what, at)
            return
        if job.iteration == job.target:  # it began there, and has nothing to log
            self._end(job_id, "COMPLETED", at)
            return
        job.iteration = min(job.iteration // self.LOGGED * self.LOGGED + self.LOGGED, job.target)
        job.log_line(at)
        if job.iteration % job.interval == 0 or job.iteration == job.target:
            job.save(at)
            self.checkpoints += 1
        if job.iteration == job.target:
            self._end(job_id, "COMPLETED", at)
        else:
            self._plan_step(job_id, at)

    def _end(self, job_id: str, state: str, at: float) -> None:
        job = self.jobs[job_id]
        if job.state == "RUNNING":
            self._running -= 1
        job.state, job.ended_at = state, at

    # What a session asks of it: autoexp's Scheduler protocol

    def payload_spec(self, spec: JobSpec, attempt: Attempt) -> PayloadSpec:
        return PayloadSpec(spec.command, spec.environment, 1.0)

    def longest_array(self) -> int:
        return 1

    def submit(self, ref: AttemptRef, options: SubmitOptions, lock: int) -> str:
        self._answer("sbatch")
        if self._dice.random() < self.rates.refused_for_now_per_submission:
            raise errors.SubmissionPostponed("QOSMaxSubmitJobPerUserLimit")
        job_id = str(100_000 + len(self.jobs))
        self.jobs[job_id] = self._alive[job_id] = self.program(options.name, ref.directory)
        if not payload.claim(ref.directory, job_id):
            raise AssertionError(f"{options.name}: somebody else has claimed it")
        self.submissions[options.name] += 1
        waits = self._until(1 / (self.rates.queue_hours * HOUR))
        heapq.heappush(self._waiting, (self.clock.time() + waits, job_id))
        if self._dice.random() < self.rates.answers_lost_per_submission:
            raise errors.SubmissionUncertain("Socket timed out on send/recv operation")
        return job_id

    def find(self, ref: AttemptRef, *, in_flight: bool) -> str | None:
        self._answer("squeue --name")
        return next((i for i, job in self.jobs.items() if job.name == ref.name), None)

    def query(self, refs: Sequence[AttemptRef]) -> dict[str, JobStatus]:
        self._answer("squeue")
        return {ref.key: self._sighting(self.jobs[str(ref.job_id)]) for ref in refs}

    def cancel(self, refs: Sequence[AttemptRef]) -> dict[str, str]:
        self._answer("scancel")
        for ref in refs:
            if self.jobs[str(ref.job_id)].is_alive:
                self._end(str(ref.job_id), "CANCELLED", self.clock.time())
        return {ref.key: "accepted" for ref in refs}

    def tell(self, ref: AttemptRef, name: str) -> str:
        self._answer("scancel --signal")
        return f"signalled {ref.job_id} ({name})"

    def avoid(self, refs: Sequence[AttemptRef], nodes: Sequence[str]) -> None:
        self._answer("scontrol update")

    def _answer(self, command: str) -> None:
        self.calls[command] += 1
        if self.clock.time() < self._silent_until:
            raise errors.SchedulerUnavailable("Unable to contact slurm controller")

    @staticmethod
    def _sighting(job: Trainer) -> JobStatus:
        def moment(at: float | None) -> datetime | None:
            return None if at is None else datetime.fromtimestamp(at, UTC)

        code = {"COMPLETED": 0, "FAILED": 1}.get(job.state)
        return JobStatus(
            job.state,
            exit_code=code,
            nodes="n[1-16]",
            started_at=moment(job.started_at),
            ended_at=moment(job.ended_at),
        )
