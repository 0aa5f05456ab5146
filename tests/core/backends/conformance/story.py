"""Sessions of each trainer, played by the test."""

import json
from pathlib import Path
from typing import Any

from autoexp.config.compose import Composed, compose
from autoexp.monitor.monitor import Monitor
from autoexp.schedulers.base import JobStatus
from autoexp.session.session import Session
from tests.builders import create
from tests.core.backends.conformance.trainer import Trainer

# Nothing changes what is composed: once for each trainer will do.
_composed: dict[str, Composed] = {}


def composed_for(trainer: Trainer, root: Path) -> Composed:
    """An experiment of one trunk and a cooldown at 100."""
    config = {
        "defaults": ["_self_"],
        "project": {"name": "t"},
        "backend": trainer.backend,
        "slurm": {"kind": "local"},
        "monitoring": {"save_progress_every_s": 0},
        "cooldowns": [{"at": [100], "decay": {"iterations": 50}}],
    }
    (root / "t.yaml").write_text(json.dumps(config))
    return compose(str(root / "t.yaml"))


class TrainerStory:
    """A session of one trunk and a cooldown at 100, whose trainer is played by the test."""

    def __init__(self, trainer: Trainer, root: Path) -> None:
        root.mkdir()
        if trainer.name not in _composed:
            _composed[trainer.name] = composed_for(trainer, root)
        composed = _composed[trainer.name]
        self.session = Session.load(create(composed, root / "sessions", session_id="s1"))
        self.monitor = Monitor(self.session)
        self.trainer = trainer
        self.trunk, self.branch = self.session.jobs["t"], self.session.jobs["t-cd100"]
        self.save_dir = Path(self.trunk.spec.save_dir)
        self.submit()

    def submit(self) -> None:
        attempt = self.session.begin_attempt(self.trunk)
        assert attempt is not None
        Path(attempt.log).parent.mkdir(parents=True)
        self.session.record_submission(self.trunk, attempt, f"id{attempt.number}")

    def log(self, iteration: int, loss: float = 2.5) -> None:
        assert self.trunk.attempt is not None
        if self.trainer.log_line is not None:
            with Path(self.trunk.attempt.log).open("a") as log:
                log.write(self.trainer.log_line(iteration, loss) + "\n")

    def look(self, state: str | None = None, **facts: Any) -> list[str]:
        """One look; returns the keys of what happened."""
        statuses = {}
        if state is not None:
            assert self.trunk.attempt is not None
            statuses = {self.trunk.attempt.key: JobStatus(state, **facts)}
        return [event.key for event in self.monitor.look(statuses).events]

    @property
    def launches(self) -> int:
        return len(self.session.pending_actions())
