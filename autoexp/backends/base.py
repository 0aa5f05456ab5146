"""What a backend has to know about its trainer."""

from pathlib import Path
from typing import NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict

from autoexp.errors import SessionError


class Closed(BaseModel):
    """A frozen model in which a misspelt key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Branch(Closed):
    """A cooldown as the trainer has to run it."""

    iteration: int
    """Branch point: the iteration of the parent's checkpoint."""
    decay_iterations: int
    """Length of the decay; the branch ends at `iteration + decay_iterations`."""
    shape: str
    min_lr: float
    """Learning rate at the end of the decay."""

    @property
    def target(self) -> int:
        return self.iteration + self.decay_iterations


class Progress(NamedTuple):
    """What one log line says; None where it says nothing."""

    iteration: int
    target: int | None
    loss: float | None
    """Nats per token; None when the trainer left it out, as Megatron does with a NaN."""
    learning_rate: float | None
    seconds_per_iteration: float | None


class FoundCheckpoint(NamedTuple):
    """A complete checkpoint on the filesystem."""

    iteration: int
    path: Path


class CheckpointScan(NamedTuple):
    """What a look into a checkpoint folder found."""

    complete: list[FoundCheckpoint]
    """By iteration."""
    unfinished: bool = False
    """Whether something there may become complete without a change to the watched paths."""


class Backend(Protocol):
    """One trainer: command lines, checkpoints, progress, cooldowns."""

    @property
    def train_iters(self) -> int:
        """The trunk's target iteration."""

    @property
    def save_interval(self) -> int:
        """Iterations between checkpoints: branch points are multiples of it."""

    def trunk_command(self, save_dir: Path) -> tuple[str, ...]:
        """The trunk's argument list; it resumes by itself from `save_dir`."""

    def cooldown_command(self, branch: Branch, save_dir: Path) -> tuple[str, ...]:
        """A branch's argument list; `save_dir` has been seeded, and it resumes from there."""

    def environment(self) -> dict[str, str]:
        """Variables that the trainer needs."""

    def refusals(self, branch: Branch) -> list[str]:
        """Why this trainer could not run `branch`, in words; empty when it can."""

    def watched(self, save_dir: Path) -> tuple[Path, ...]:
        """Paths whose stat changes when a checkpoint may have become complete."""

    def checkpoints(self, save_dir: Path) -> CheckpointScan:
        """The checkpoints in `save_dir`."""

    def seed(self, checkpoint: FoundCheckpoint, save_dir: Path) -> None:
        """Pin `checkpoint` as the start of a branch that saves in `save_dir`; repeatable."""

    def progress(self, line: bytes) -> Progress | None:
        """What a log line says about the training, if anything."""

    def set_aside(self, save_dir: Path, after: int) -> list[str]:
        """Rename the checkpoints behind iteration `after`, so that training resumes at or before.

        Only while nothing runs that saves there; repeatable. Returns the names of what was renamed.
        """

    def planned_rate(self, branch: Branch, iteration: int) -> float | None:
        """The learning rate that a branch is to have at an iteration; None: nobody can tell."""


class Defaults:
    """What a backend does that knows nothing better."""

    def set_aside(self, save_dir: Path, after: int) -> list[str]:
        """Raises SessionError: this trainer's checkpoints are not known well enough."""
        raise SessionError(
            f"{save_dir}: checkpoints of this backend cannot be rolled back to {after}; "
            "restart without roll_back, or move them by hand"
        )

    def planned_rate(self, branch: Branch, iteration: int) -> float | None:
        """Nobody can tell."""
        del branch, iteration
        return None
