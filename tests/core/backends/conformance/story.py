"""Sessions of each trainer, played by the test."""

import json
from pathlib import Path
from typing import Any

from autoexp.config.compose import Composed, compose
from tests.builders import create
from tests.core.backends.conformance.trainer import Trainer
from tests.core.story import Story

# Nothing changes what is composed: once for each trainer will do.
_composed: dict[str, Composed] = {}


def composed_for(trainer: Trainer, root: Path) -> Composed:
    """An experiment of one trunk and a cooldown at 100."""
    config = {
        "defaults": ["_self_"],
        **trainer.configuration,
        "monitoring": {"save_progress_every_s": 0},
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
        self._story = Story(create(composed, root / "sessions", session_id="s1"))
        self.session = self._story.session
        self.trainer = trainer
        self.trunk, self.branch = self.session.jobs["t"], self.session.jobs["t-cd100"]
        self.save_dir = Path(self.trunk.spec.save_dir)
        self.branch_dir = Path(self.branch.spec.save_dir)
        self.submit()

    def submit(self) -> None:
        self._story.submit("t")

    def log(self, iteration: int, loss: float = 2.5) -> None:
        assert self.trunk.attempt is not None
        if self.trainer.log_line is not None:
            with Path(self.trunk.attempt.log).open("a") as log:
                log.write(self.trainer.log_line(iteration, loss) + "\n")

    def look(self, state: str | None = None, **facts: Any) -> list[str]:
        """One look; returns the keys of what happened."""
        return [event.key for event in self._story.look(name="t", state=state, **facts).events]

    def pin(self) -> int:
        """Pin the trunk's one checkpoint for the branch; returns the bytes that were copied."""
        (found,) = self.trunk.spec.trainer.checkpoints(self.save_dir).complete
        return self.branch.spec.trainer.seed(found, self.branch_dir)

    def of_the_branch(self) -> list[int]:
        """Iterations of the complete checkpoints of the branch."""
        return [x.iteration for x in self.branch.spec.trainer.checkpoints(self.branch_dir).complete]

    @property
    def launches(self) -> int:
        return len(self.session.pending_actions())
