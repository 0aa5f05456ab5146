"""What a backend has to know about its trainer."""

from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

from autoexp.backends.batches import Batches
from autoexp.model import Closed

UNDECIDED = -1
"""Where a training begins that has started: from a checkpoint or not, its next lines say."""


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


class Unread(NamedTuple):
    """A progress line whose iteration cannot be read."""

    what: str
    """The part of the line, as `iteration '28.2K'`."""


class Progress(NamedTuple):
    """What one log line says; None where it says nothing."""

    iteration: int
    target: int | None
    loss: float | None
    """Nats per token; None when the trainer left it out, as Megatron does with a NaN."""
    learning_rate: float | None
    seconds_per_iteration: float | None
    unread: str | None = None
    """What stands where a number belongs, as `loss 'n/a'`."""


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
    progress: tuple[Progress, ...] = ()
    """What the newest checkpoint says of the training so far, where the log does not say it."""
    problem: str | None = None
    """What the trainer will stumble over there, in words, and what to do about it."""


class PinChanges(NamedTuple):
    """Files of a pinned checkpoint that have other contents than when it was pinned."""

    seed: tuple[str, ...] = ()
    """In the job's own save directory."""
    origin: tuple[str, ...] = ()
    """In the checkpoint that was pinned, changed in place."""
    path: str = ""
    """That checkpoint."""


class Backend(Protocol):
    """One trainer: command lines, checkpoints, progress, cooldowns."""

    PROGRESS_MARK: ClassVar[bytes]
    """Bytes in every line of which `progress` or `read_start` says something: the other lines are
    passed over."""
    LOGS_DONE: ClassVar[bool]
    """Whether a logged iteration has been done: the first one lies behind where it began."""

    @property
    def train_iters(self) -> int:
        """The trunk's target iteration."""

    @property
    def save_interval(self) -> int:
        """Iterations between checkpoints: branch points are multiples of it."""

    @property
    def log_interval(self) -> int | None:
        """Iterations between two progress lines; None where it is not known."""

    @property
    def final_lr(self) -> float:
        """Learning rate at a cooldown's end, unless the experiment names another."""

    @property
    def sources(self) -> tuple[Path, ...]:
        """Files and folders of the trainer's own that its command line names."""

    @property
    def pins_by_links(self) -> bool:
        """Whether a branch's start takes no room: else it is a copy of a checkpoint."""

    def batches(self, workers: int) -> Batches | None:
        """Samples in each iteration on so many processes; None where nobody can tell."""

    def problems(self, workers: int) -> list[str]:
        """Why the trainer could not run at all on so many processes, in words."""

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

    def seed(self, checkpoint: FoundCheckpoint, save_dir: Path) -> int:
        """Pin `checkpoint` as the start of a branch that saves in `save_dir`; repeatable.

        Nothing that is written there changes `checkpoint`: hard links only for a trainer that
        writes files aside and renames them. Returns how many bytes were copied.
        """

    def pin_changes(self, save_dir: Path) -> PinChanges:
        """Compare what was pinned in `save_dir`, and what it was pinned from, with now."""

    def clear_torn(self, save_dir: Path) -> list[str]:
        """Move aside what a killed save left, where the trainer would start from it.

        Only while nothing runs that saves there. Returns the names of what was moved.
        """

    def progress(self, line: bytes) -> Progress | Unread | None:
        """What a log line says about the training, if anything; it never raises."""

    def read_start(self, line: bytes, earlier: int | None) -> int | None:
        """The iteration that the training begins from, where a log line says so.

        `earlier` is what lines before it said; UNDECIDED is an answer too.
        """

    def set_aside(self, save_dir: Path, after: int) -> list[str]:
        """Rename the checkpoints behind iteration `after`, so that training resumes at or before.

        Only while nothing runs that saves there; repeatable. Returns the names of what was renamed.
        Raises SessionError when no checkpoint is left to resume from.
        """

    def planned_rate(self, branch: Branch, iteration: int) -> float | None:
        """The learning rate that a branch is to have at an iteration; None: nobody can tell."""
