"""The protocol of backends: knowledge about one trainer."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol, Self

from autoexp.backends.batches import Batches
from autoexp.logs.event_files import RateFiles
from autoexp.model import FrozenModel

UNDECIDED = -1
"""The start of a training is not known yet: its next lines decide."""


class Branch(FrozenModel):
    """A cooldown, as the trainer runs it; at iteration 0 a baseline, which runs from scratch."""

    iteration: int
    """Branch point: the iteration of the parent's checkpoint; 0 of a baseline."""
    stable_iterations: int = 0
    """Iterations at the peak rate before the decay; of a baseline with its warm-up."""
    decay_iterations: int
    """Length of the decay, with which the branch ends."""
    shape: str
    min_lr: float
    """Learning rate at the end of the decay."""
    power: float | None = None
    """Of the shape `power`."""
    points: tuple[tuple[float, float], ...] | None = None
    """Of the shape `points`: shares of the length, and of the way from `min_lr` to the peak."""
    hold_iterations: int = 0
    """Iterations at the end that stay at `min_lr`; part of `decay_iterations`."""
    samples: int | None = None
    """Samples seen at the branch point, where the batches before it were others than its own."""
    tokens: int | None = None
    """Tokens seen there, where its iterations have others than its parent's."""

    @property
    def target(self) -> int:
        return self.falls_from + self.decay_iterations

    @property
    def is_baseline(self) -> bool:
        """True if it begins from scratch."""
        return self.iteration == 0

    def from_scratch(self) -> "Branch":
        """The same decay, in a run from scratch."""
        return self.model_copy(
            update={"iteration": 0, "stable_iterations": self.falls_from, "samples": None}
            | {"tokens": None}
        )

    @property
    def falls_from(self) -> int:
        """The iteration from which on the rate falls."""
        return self.iteration + self.stable_iterations

    @property
    def falls_until(self) -> int:
        """The iteration at which the rate has reached `min_lr`."""
        return self.target - self.hold_iterations


class Change(NamedTuple):
    """Whether a branch may change an argument of its parent while optimizer state is kept."""

    may: bool
    how: str = ""
    """How it takes effect, for the plan; or why it cannot change."""
    data: bool = False
    """True if the loss of the branch may be of other data, and so begin anywhere."""


def may(how: str = "", *, data: bool = False) -> Change:
    """An argument that a branch may change."""
    return Change(True, how, data)


def fixed(why: str) -> Change:
    """An argument that a branch has to share with its parent."""
    return Change(False, why)


class Unread(NamedTuple):
    """A progress line whose iteration cannot be read."""

    what: str
    """The part of the line, as `iteration '28.2K'`."""


class Progress(NamedTuple):
    """Values of one log line; None where it has none."""

    iteration: int
    target: int | None
    loss: float | None
    """Nats per token; None when the trainer left it out, as Megatron does with a NaN."""
    learning_rate: float | None
    seconds_per_iteration: float | None
    unread: str | None = None
    """A text in place of a number, as `loss 'n/a'`."""
    grad_norm: float | None = None
    tokens_per_s: float | None = None
    """As the trainer prints it: of one GPU, where it does so."""
    tflops: float | None = None
    """TFLOP/s of one GPU."""
    mfu: float | None = None
    """Model FLOPs utilization: per cent of what the GPU can do."""


class Validation(NamedTuple):
    """A validation loss of one log line."""

    iteration: int
    loss: float
    """Nats per token."""
    name: str = "validation"
    """Of the set of data."""


class FoundCheckpoint(NamedTuple):
    """A complete checkpoint on the filesystem."""

    iteration: int
    path: Path


class CheckpointScan(NamedTuple):
    """The result of a scan of a checkpoint folder."""

    complete: list[FoundCheckpoint]
    """By iteration."""
    unfinished: bool = False
    """True if a checkpoint there may become complete without a change to the watched paths."""
    validations: tuple[Validation, ...] = ()
    """The validation losses in that history."""
    progress: tuple[Progress, ...] = ()
    """The history of the training in the newest checkpoint, where the log does not have it."""
    problem: str | None = None
    """A problem that the trainer will have there, and what to do about it."""


class PinChanges(NamedTuple):
    """Files of a pinned checkpoint that have other contents than when it was pinned."""

    seed: tuple[str, ...] = ()
    """In the job's own save directory."""
    origin: tuple[str, ...] = ()
    """In the checkpoint that was pinned, changed in place."""
    path: str = ""
    """The checkpoint that was pinned."""


class LimitWarning(NamedTuple):
    """How a trainer is told to save: to end then, as its time limit is near, or to go on."""

    signal: str = "SIGTERM"
    file: str | None = None
    """A file that it looks for, in place of a signal; `{save_dir}` is its save directory."""

    def file_in(self, save_dir: Path) -> str | None:
        """The file's path."""
        return None if self.file is None else self.file.replace("{save_dir}", str(save_dir))


class Backend(Protocol):
    """One trainer: command lines, checkpoints, progress, cooldowns."""

    PROGRESS_MARK: ClassVar[bytes]
    """A substring that every line for `progress` or `read_start` contains; other lines are
    skipped."""
    LINES_BEFORE_PROGRESS: ClassVar[int | None]
    """Lines of a log in which some progress is expected; None: as many as it likes."""
    LOGS_DONE: ClassVar[bool]
    """True if a logged iteration is finished: the first one is after the start."""

    @property
    def train_iters(self) -> int:
        """The trunk's target iteration."""

    @property
    def save_interval(self) -> int:
        """Iterations between checkpoints."""

    @property
    def extra_saves(self) -> tuple[int, ...]:
        """Iterations at which it saves besides those of its interval."""

    def saving_at(self, iterations: Sequence[int]) -> Self:
        """The same trainer, told to save there too; unchanged where it cannot be told."""

    @property
    def log_interval(self) -> int | None:
        """Iterations between two progress lines; None where unknown."""

    @property
    def logged(self) -> frozenset[str]:
        """Numbers that it logs, by the names that metric rules have for them."""

    @property
    def final_lr(self) -> float:
        """Learning rate at a cooldown's end, unless the experiment sets another."""

    @property
    def warmup(self) -> int:
        """Iterations of warm-up, in which no decay may begin."""

    @property
    def sources(self) -> tuple[Path, ...]:
        """Files and folders of the trainer itself that its command line names."""

    @property
    def pins_by_links(self) -> bool:
        """True if a branch's start takes no disk space: otherwise it is a copy of a checkpoint."""

    def batches(self, workers: int) -> Batches | None:
        """Samples in each iteration on this number of processes; None where unknown."""

    def problems(self, workers: int) -> list[str]:
        """Reasons why the trainer cannot run on this number of processes."""

    def trunk_command(self, save_dir: Path) -> tuple[str, ...]:
        """The trunk's argument list; it resumes by itself from `save_dir`."""

    def cooldown_command(self, branch: Branch, save_dir: Path) -> tuple[str, ...]:
        """A branch's argument list; `save_dir` has been seeded, and it resumes from there.

        Of a baseline it begins at 0, and resumes from its own checkpoints.
        """

    def environment(self) -> dict[str, str]:
        """Variables that the trainer needs."""

    @property
    def stack_signal(self) -> str | None:
        """The signal at which each process writes its stacks; None where it has none."""

    @property
    def working_directory(self) -> str | None:
        """The directory that it has to run in; None: the job's own."""

    def resumed(self, command: tuple[str, ...], save_dir: Path) -> tuple[str, ...]:
        """The command where `save_dir` has a checkpoint, for trainers that have to be told."""

    def checkpoint_names(self, save_dir: Path) -> tuple[Path, str]:
        """The folder of its checkpoints, and the regular expression of their names."""

    def files(self, branch: Branch | None, save_dir: Path) -> dict[str, str]:
        """Files that a job needs, by path, with their content: its settings."""

    def copies(self, save_dir: Path) -> dict[str, str]:
        """A checkpoint file that each save overwrites, of which the job keeps copies; or empty.

        `file` is its path, `name` that of a copy beside it, with `{iteration}`, `key` where the
        file says its iteration.
        """

    @property
    def warning(self) -> LimitWarning:
        """How it is told that its time limit is near."""

    @property
    def save_now(self) -> LimitWarning | None:
        """How it is told to save at once and go on; None: it cannot."""

    def refusals(self, branch: Branch) -> list[str]:
        """Reasons why this trainer cannot run a branch or a baseline; empty when it can."""

    def data_sets(self) -> tuple[str, ...]:
        """Names or paths of the data that it trains on, as its settings say them."""

    def branch_change(self, key: str) -> Change:
        """Whether a branch may change a setting, as `args.lr`, and keep optimizer state."""

    def parameter_count(self) -> int | None:
        """The model's parameters, for scaling laws; None where unknown."""

    @property
    def merge_scores(self) -> str | None:
        """File of scores that its merger writes in the job's output directory, if any."""

    def merge_command(
        self, checkpoints: Sequence[Path], weights: Sequence[float], output: Path
    ) -> tuple[str, ...]:
        """The command that writes the weighted sum of checkpoints to `output`; empty: no merger."""

    def retention_refusal(self, iteration: int) -> str | None:
        """Reason why a checkpoint is deleted before anybody sees it; None when it stays."""

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
        """Compare the files pinned in `save_dir`, and their originals, with the time of the pin."""

    def clear_torn(self, save_dir: Path) -> list[str]:
        """Move remains of a killed save aside, where the trainer would start from them.

        Only while no process saves there. Returns the names of what was moved.
        """

    def progress(self, line: bytes) -> Progress | Unread | None:
        """Read the progress in a log line, if there is any; never raises."""

    def rate_files(self, save_dir: Path) -> RateFiles | None:
        """Where it writes its learning rates, if its log does not have them."""

    def validation(self, line: bytes) -> Validation | None:
        """Read a validation loss in a log line that says no progress; never raises."""

    def read_start(self, line: bytes, earlier: int | None) -> int | None:
        """The iteration that the training begins from, where a log line says so.

        ``earlier` is the answer for earlier lines; UNDECIDED is an answer too.
        """

    def set_aside(self, save_dir: Path, after: int) -> list[str]:
        """Rename the checkpoints behind iteration `after`, so that training resumes at or before.

        Only while nothing runs that saves there; repeatable. Returns the names of what was renamed.
        Raises SessionError when no checkpoint is left to resume from.
        """

    def planned_rate(self, branch: Branch, iteration: int) -> float | None:
        """The planned learning rate of a branch or baseline at an iteration; None: unknown."""
