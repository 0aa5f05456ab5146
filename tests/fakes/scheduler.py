"""A scheduler and its jobs in memory, and a monitor that dies at a step of the test's choice."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from autoexp import errors, payload, states
from autoexp.backends.megatron.formats import TORCH_DIST, TRACKER
from autoexp.jobs.record import Attempt
from autoexp.jobs.spec import JobSpec
from autoexp.schedulers.base import AttemptRef, JobStatus, PayloadSpec, SubmitOptions
from autoexp.storage import atomic
from bench.world import sessions


class Killed(BaseException):
    """The monitor is gone, at this very line."""


class Fate:
    """Decides at which durable step the monitor dies; the scheduler and its jobs live on."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.steps_left = 0
        patch.setattr(atomic, "step", self._step)
        # A kill loses nothing that was written, and no test waits for time to pass.
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(time, "sleep", lambda seconds: None)

    def spares(self, act: Callable[[], object]) -> bool:
        """Whether `act` comes to its end before the last of the steps that are left."""
        with suppress(Killed):
            act()
            return True
        self.steps_left = 0
        return False

    def _step(self) -> None:
        self.steps_left -= 1
        if self.steps_left == 0:
            raise Killed


class FakeJob:
    """A job in the queue and its trainer, which knows no more than what was laid out for it."""

    def __init__(self, name: str, directory: Path, after: str | None) -> None:
        self.name, self.after, self.state = name, after, "PENDING"
        self.spec: dict[str, Any] = json.loads((directory / "spec.json").read_text())
        self.log, self.output = Path(self.spec["log"]), Path(self.spec["cwd"])
        assert self.log.parent.is_dir(), "the log cannot be opened"
        flags = dict(zip(self.spec["command"], self.spec["command"][1:], strict=False))
        self.target = int(flags.get("--train-iters", 0))
        self.saves = self.output / "checkpoints"
        self.saves_soon = False
        """True once it was told to save at once."""
        self.start()

    def start(self) -> None:
        self.iteration, self.unfinished = TORCH_DIST.tracked(self.saves) or 0, False

    def lie(self) -> None:
        """Log that the target is reached, save nothing, and exit well."""
        with self.log.open("a") as log:
            log.write(f" iteration {self.target:8d}/ {self.target} | lm loss: 2.5 |\n")
        self.state = "COMPLETED"

    def train(self, metadata: str | None = None) -> bool:
        """Save the next checkpoint, or leave it with `metadata`; returns whether it is complete."""
        command: list[str] = self.spec["command"]
        assert self.iteration or "--exit-on-missing-checkpoint" not in command
        if "autoexp.demo.merge" in command:
            assert all(Path(word).is_dir() for word in command if "/inputs/" in word)
            Path(command[command.index("--scores") + 1]).write_text('{"validation_loss": 2.5}')
        if not self.unfinished:
            if self.iteration >= self.target:
                self.state = "COMPLETED"
                return False
            begun = self.iteration
            step = 17 if self.saves_soon else 100 - begun % 100
            self.iteration, self.saves_soon = min(self.target, begun + step), False
            with self.log.open("a") as log:  # so that a branch is seen to begin at its checkpoint
                log.write(f" iteration {begun + 10:8d}/ {self.target} | lm loss: 2.6 |\n")
        self.unfinished = not self.unfinished and metadata is not None
        line = f" iteration {self.iteration:8d}/ {self.target} | lm loss: 2.5 |\n"
        with self.log.open("a") as log:
            log.write(line[:20] if self.unfinished else line)
        folder = self.saves / sessions.folder_name(self.iteration)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".metadata").write_text("")
        (folder / "metadata.json").write_text(str(metadata) if self.unfinished else "{}")
        if self.unfinished:
            return False
        (self.saves / TRACKER).write_text(str(self.iteration))
        return True


class FakeScheduler:
    """Takes jobs, knows them by name, loses answers and falls silent when it is told to."""

    def __init__(self) -> None:
        self.jobs: dict[str, FakeJob] = {}
        self.submissions: Counter[str] = Counter()
        self.silent = self.full = False
        self.most: int | None = None
        """How many jobs the user may have."""
        self.refusals = 0
        self.next_time: str | None = None  # what comes of the next submission
        self._sbatch: tuple[AttemptRef, SubmitOptions, int] | None = None

    @property
    def alive(self) -> list[str]:
        return [i for i, job in self.jobs.items() if not states.is_terminal(job.state)]

    def payload_spec(self, spec: JobSpec, attempt: Attempt) -> PayloadSpec:
        return PayloadSpec(spec.command, spec.environment, 1.0)

    def submit(self, ref: AttemptRef, options: SubmitOptions, lock: int) -> str:
        if self.full or self.silent:
            raise errors.SubmissionPostponed if self.full else errors.SubmissionUncertain
        if self.most is not None and len(self.alive) + max(1, len(options.tasks)) > self.most:
            self.refusals += 1
            raise errors.SubmitLimitReached("QOSMaxSubmitJobPerUserLimit")
        how, self.next_time = self.next_time, None
        if how == "refused":
            raise errors.SubmissionRefused("Invalid account")
        if how == "outlives":  # the monitor's sbatch goes on, with the lock
            self._sbatch = (ref, options, os.dup(lock))
            raise Killed
        job_id = self._accept(ref, options)
        if how is not None:
            raise Killed if how == "dies" else errors.SubmissionUncertain("Socket timed out")
        return job_id

    def _accept(self, ref: AttemptRef, options: SubmitOptions) -> str:
        number = str(100 + len(self.jobs))
        jobs = {number: ref.directory}
        if options.tasks:
            keys = json.loads((ref.directory / payload.TASKS).read_text())
            jobs = {f"{number}_{n}": ref.directory.parent / keys[str(n)] for n in options.tasks}
        for job_id, directory in jobs.items():
            self.jobs[job_id] = FakeJob(options.name, directory, options.after)
            self.submissions[self.jobs[job_id].spec["key"]] += 1
        return number

    def longest_array(self) -> int:
        return 100

    def find(self, ref: AttemptRef, *, in_flight: bool) -> str | None:
        self._answer()
        found = [job_id for job_id, job in self.jobs.items() if job.name == ref.name]
        if self._sbatch is not None:
            (waiting, options, lock), self._sbatch = self._sbatch, None
            self._accept(waiting, options)  # too late for this answer
            os.close(lock)
        if found and (ref.directory / payload.TASKS).exists():
            return found[0].partition("_")[0]
        return found[0] if found else None

    def query(self, refs: list[AttemptRef]) -> dict[str, JobStatus]:
        self._answer()
        return {t.key: JobStatus(self.jobs[str(t.job_id)].state) for t in refs}

    def cancel(self, refs: list[AttemptRef]) -> dict[str, str]:
        self._answer()
        for job_id in {str(ref.job_id) for ref in refs} & set(self.alive):
            self.jobs[job_id].state = "CANCELLED"
        return {ref.key: "accepted" for ref in refs}

    def tell(self, ref: AttemptRef, name: str) -> str:
        self._answer()
        self.jobs[str(ref.job_id)].saves_soon = True
        return f"sent {name}"

    def _answer(self) -> None:
        if self.silent:
            raise errors.SchedulerUnavailable("Unable to contact slurm controller")
