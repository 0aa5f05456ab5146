"""The part that is the same for all backends, given their checkpoint layout and peak rate."""

import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from autoexp.backends.checkpoints import Layout
from autoexp.backends.decay import decayed
from autoexp.backends.protocol import (
    Branch,
    Change,
    CheckpointScan,
    FoundCheckpoint,
    LimitWarning,
    PinChanges,
    Progress,
    Unread,
    Validation,
    fixed,
)
from autoexp.dotted import flat
from autoexp.logs.event_files import RateFiles
from autoexp.logs.numbers import is_number
from autoexp.model import FrozenModel
from autoexp.templates import fill, refuse_unknown

_EACH = ("checkpoints", "weights")
_MERGED = ("output", "python")
# A job runs in its output directory, whatever directory a path was said in.
AbsolutePath = Annotated[str, AfterValidator(lambda path: str(Path(path).expanduser().absolute()))]


StackSignal = Literal["SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGHUP"]


class BackendBase(FrozenModel):
    """Implements `Backend` from a checkpoint layout, a peak learning rate and a warm-up."""

    PROGRESS_MARK: ClassVar[bytes] = b""
    LINES_BEFORE_PROGRESS: ClassVar[int | None] = None
    LOGS_DONE: ClassVar[bool] = True
    UNIT: ClassVar[str] = "iterations"
    """The trainer's word for iterations."""
    LENGTH: ClassVar[str] = "args.train_iters"
    """The key of the training's length, in iterations."""
    SEED: ClassVar[str | None] = None
    """The key of the seed of weights and data; None: it has none."""
    SHAPES: ClassVar[Mapping[str, str]] = {}
    """The decay shapes that the trainer has, and its own names for them."""
    LOGS: ClassVar[frozenset[str]] = frozenset({"loss"})
    """What `logged` is."""
    HOLDS: ClassVar[bool] = False
    """True if the trainer can stay at `min_lr` before the end."""
    BRANCH_CHANGES: ClassVar[Mapping[str, Change]] = {}
    DATA_SETS: ClassVar[tuple[str, ...]] = ()
    """Whether a branch may change an argument; the longest key that fits counts."""

    merger: tuple[str, ...] = Field(
        (),
        description="words of a command that merges checkpoints: `{checkpoints}` and `{weights}` "
        "stand for a word each, `{output}` for what it writes, `{python}` for autoexp's",
    )

    stack_signal: StackSignal | None = Field(
        None,
        description="the signal at which each process of the trainer writes its stacks to its "
        "standard error, by `faulthandler.register`: for the evidence of a hang",
    )

    parameters: int | None = Field(
        None,
        gt=0,
        description="the model's parameters, for scaling laws; the demo's and Megatron's are "
        "counted where it is not given",
    )

    @model_validator(mode="after")
    def _merger_has_all(self) -> Self:
        if self.merger:
            refuse_unknown(iter(self.merger), (*_EACH, *_MERGED))
            missing = [name for name in ("{checkpoints}", "{output}") if name not in self.merger]
            if missing:
                raise ValueError(f"merger: `{missing[0]}` has to be a word of it")
        return self

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """Layout of its checkpoints on disk."""

    @property
    @abstractmethod
    def peak_lr(self) -> float | None:
        """Learning rate after the warm-up; None where unknown."""

    @property
    @abstractmethod
    def warmup(self) -> int:
        """Iterations of warm-up."""

    def checkpoint_folder(self, save_dir: Path) -> Path:
        """The folder that holds the checkpoints of a training that saves in `save_dir`."""
        return save_dir

    @classmethod
    def seed_key(cls, values: Mapping[str, Any]) -> str | None:
        """The key of the seed, for a backend of these values; None where it has none."""
        del values
        return cls.SEED

    @property
    def extra_saves(self) -> tuple[int, ...]:
        return ()

    def saving_at(self, iterations: Sequence[int]) -> Self:
        del iterations
        return self

    @property
    def log_interval(self) -> int | None:
        return None

    @property
    def logged(self) -> frozenset[str]:
        return self.LOGS

    @property
    def final_lr(self) -> float:
        return 0.0

    @property
    def sources(self) -> tuple[Path, ...]:
        return ()

    @property
    def pins_by_links(self) -> bool:
        return self.layout.renames

    def problems(self, workers: int) -> list[str]:
        del workers
        return []

    @property
    def working_directory(self) -> str | None:
        return None

    def resumed(self, command: tuple[str, ...], save_dir: Path) -> tuple[str, ...]:
        """The same: it goes on by itself."""
        del save_dir
        return command

    def checkpoint_names(self, save_dir: Path) -> tuple[Path, str]:
        return self.checkpoint_folder(save_dir), self.layout.name.pattern

    def files(self, branch: Branch | None, save_dir: Path) -> dict[str, str]:
        """None: all of it is on the command line."""
        del branch, save_dir
        return {}

    def copies(self, save_dir: Path) -> dict[str, str]:
        """None: each save has a name of its own."""
        del save_dir
        return {}

    @property
    def warning(self) -> LimitWarning:
        return LimitWarning()

    @property
    def save_now(self) -> LimitWarning | None:
        return None

    def refusals(self, branch: Branch) -> list[str]:
        reasons = []
        if branch.falls_from < self.warmup or (
            not branch.is_baseline and branch.iteration < self.warmup
        ):
            reasons.append(f"inside the warm-up of {self.warmup} {self.UNIT}")
        if self.peak_lr is not None and branch.min_lr >= self.peak_lr:
            reasons.append(f"min_lr {branch.min_lr:g} is not below lr {self.peak_lr:g}")
        shapes = self.decay_shapes()
        if branch.shape not in shapes:
            reasons.append(
                f"the trainer has no decay of the shape {branch.shape}; "
                f"there are: {', '.join(shapes) or 'none'}"
            )
        deleted = None if branch.is_baseline else self.retention_refusal(branch.iteration)
        if deleted is not None:
            reasons.append(deleted)
        if branch.hold_iterations and not self.HOLDS:
            reasons.append("the trainer ends with its decay, and has no `hold`")
        return reasons

    def decay_shapes(self) -> Mapping[str, str]:
        """The decay shapes that the trainer has, and its own names for them."""
        return self.SHAPES

    def data_sets(self) -> tuple[str, ...]:
        """Names of data sets that its settings at `DATA_SETS` give, without their weights."""
        values = flat(self.model_dump(mode="json"))
        found = (values.get(key) for key in self.DATA_SETS)
        words = (
            word for value in found for word in (value if isinstance(value, list) else [value])
        )
        return tuple(word for word in words if isinstance(word, str) and not is_number(word))

    def branch_change(self, key: str) -> Change:
        parts = key.split(".")
        prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        known = (self.BRANCH_CHANGES.get(prefix) for prefix in prefixes)
        found = (change for change in known if change is not None)
        return next(found, fixed("it is what a training and its branches share"))

    def parameter_count(self) -> int | None:
        return self.parameters

    @property
    def merge_scores(self) -> str | None:
        return None

    def merge_command(
        self, checkpoints: Sequence[Path], weights: Sequence[float], output: Path
    ) -> tuple[str, ...]:
        several = {
            "{checkpoints}": [str(path) for path in checkpoints],
            "{weights}": [repr(weight) for weight in weights],
        }
        values = {"output": str(output), "python": sys.executable}
        return tuple(
            part
            for word in self.merger
            for part in (several[word] if word in several else [fill(word, values)])
        )

    def retention_refusal(self, iteration: int) -> str | None:
        del iteration
        return None

    def watched(self, save_dir: Path) -> tuple[Path, ...]:
        return self.layout.watched(self.checkpoint_folder(save_dir))

    def checkpoints(self, save_dir: Path) -> CheckpointScan:
        return self.layout.scan(self.checkpoint_folder(save_dir))

    def seed(self, checkpoint: FoundCheckpoint, save_dir: Path) -> int:
        return self.layout.seed(checkpoint, self.checkpoint_folder(save_dir))

    def pin_changes(self, save_dir: Path) -> PinChanges:
        return self.layout.pin_changes(self.checkpoint_folder(save_dir))

    def clear_torn(self, save_dir: Path) -> list[str]:
        """Do nothing: the trainer itself never starts from a torn checkpoint."""
        del save_dir
        return []

    def set_aside(self, save_dir: Path, after: int) -> list[str]:
        return self.layout.set_aside(self.checkpoint_folder(save_dir), after)

    def progress(self, line: bytes) -> Progress | Unread | None:
        """The log has no iterations in it."""
        del line
        return None

    def rate_files(self, save_dir: Path) -> RateFiles | None:
        """None: what it says of them is in its log."""
        del save_dir
        return None

    def validation(self, line: bytes) -> Validation | None:
        """The log has no validation losses in it."""
        del line
        return None

    def read_start(self, line: bytes, earlier: int | None) -> int | None:
        del line, earlier
        return None

    def planned_rate(self, branch: Branch, iteration: int) -> float | None:
        return decayed(self.peak_lr, branch, iteration, warmup=self.warmup)
