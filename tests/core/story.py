"""Sessions whose trainers and schedulers are played by the test."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autoexp.backends.megatron.formats import TRACKER
from autoexp.jobs.record import JobRecord
from autoexp.monitor.monitor import Look, Monitor
from autoexp.monitor.steps import Replace, next_step
from autoexp.operations import action_runs, phases
from autoexp.operations.step_runs import carry_out
from autoexp.rules.actions import Start
from autoexp.schedulers.base import JobStatus
from autoexp.schedulers.local import LocalScheduler
from autoexp.session.action_records import ActionRecord
from autoexp.session.session import Session
from bench.world import sessions

HANG = {"hang": {"substring": "it hangs", "actions": [{"restart": {}}]}}
LOG = logging.getLogger()


class Story:
    """A session whose trainer and scheduler are played by the test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.open()

    def open(self) -> "Story":
        """Start a monitor that knows what is on disk, as after a kill."""
        self.session = Session.load(self.path)
        self.monitor = Monitor(self.session)
        return self

    def job(self, name: str = "tiny") -> JobRecord:
        return self.session.jobs[name]

    def submit(self, name: str = "tiny") -> None:
        attempt = self.session.begin_attempt(self.job(name))
        assert attempt is not None
        Path(attempt.log).parent.mkdir(parents=True)
        self.session.record_submission(self.job(name), attempt, f"id-{attempt.key}")

    def look(self, *, name: str = "tiny", state: str | None = None, **facts: Any) -> Look:
        """Look once, perhaps with an answer from the scheduler about one job."""
        attempt = self.job(name).attempt
        if state is None or attempt is None:
            return self.monitor.look({})
        return self.monitor.look({attempt.key: JobStatus(state, **facts)})

    def log(self, iteration: int, *, name: str = "tiny", end: str = "\n") -> None:
        attempt = self.job(name).attempt
        assert attempt is not None
        with Path(attempt.log).open("a") as file:
            file.write(
                f" [2026-08-01 10:00:00.000] iteration {iteration:8d}/     300 |"
                f" elapsed time per iteration (ms): 5.0 | learning rate: 1.0E-02 |"
                f" lm loss: {3 - iteration / 1000:.6E} |{end}"
            )

    def save(self, iteration: int, *, name: str = "tiny") -> Path:
        """A complete checkpoint, written in the trainer's order."""
        folder = self.folder(iteration, name=name)
        folder.mkdir(parents=True)
        (folder / ".metadata").write_text("")
        (folder / "metadata.json").write_text("{}")
        self.track(str(iteration), name=name)
        return folder

    def folder(self, iteration: int, *, name: str = "tiny") -> Path:
        return Path(self.job(name).spec.save_dir) / sessions.folder_name(iteration)

    def track(self, text: str, *, name: str = "tiny") -> None:
        (Path(self.job(name).spec.save_dir) / TRACKER).write_text(text)

    @property
    def on_disk(self) -> tuple[list[int], list[str]]:
        """The checkpoints in the journal, and the jobs that actions launch."""
        session = Session.load(self.path)
        launched = sorted(action.action.job for action in session.actions.values())
        return [event.iteration for event in session.journal.checkpoints()], launched


StoryOf = Callable[..., Story]


def launches(look: Look) -> list[str]:
    return [action.action.job for action in look.actions]


def of(look: Look, kind: type) -> list[Any]:
    return [event for event in look.events if isinstance(event, kind)]


def say(story: Story, line: str) -> None:
    attempt = story.job().attempt
    assert attempt is not None
    with Path(attempt.log).open("a") as file:
        file.write(f"{line}\n")


def perform(story: Story, action: ActionRecord) -> None:
    """Carry an action out, one phase after the other."""
    phases.run(action_runs.carry_out(action, story.monitor, LOG), LocalScheduler())


def go_on(story: Story) -> None:
    """From whatever is on disk: act, see the attempt end, replace it, intend the next one."""
    session = story.open().session
    story.look()
    for action in session.pending_actions():
        if not isinstance(action.action, Start):
            perform(story, action)
    job = story.job()
    if job.restart is not None and job.open_attempts:
        story.look(state="CANCELLED")
    story.look()
    if job.may_be_replaced:
        assert next_step(job) == Replace(("tiny",))
        phases.run(carry_out(Replace(("tiny",)), story.monitor, LOG), LocalScheduler())
    session.begin_attempt(job)
