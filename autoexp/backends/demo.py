"""The demo backend: the small NumPy language model that ships with the project."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field

from autoexp.backends.base import AbsolutePath, BackendBase, StackSignal
from autoexp.backends.batches import Batches
from autoexp.backends.checkpoints import Layout
from autoexp.backends.decay import DEFAULT_POWER
from autoexp.backends.megatron import formats
from autoexp.backends.megatron.formats import TORCH_DIST
from autoexp.backends.protocol import (
    Branch,
    Change,
    LimitWarning,
    Progress,
    Unread,
    Validation,
    fixed,
    may,
)
from autoexp.model import FrozenModel

# The folder is written under another name, and replaces an older one as a whole.
# Source: autoexp/demo/checkpoints.py, save_checkpoint.
_RENAMING = replace(TORCH_DIST, renames=True)


_WEIGHTS = fixed("the weights in the checkpoint have this shape")
_CHANGES = {
    "args": may(),
    "args.train_iters": fixed("a branch ends with its decay"),
    "args.lr": may("the decay begins at this rate, at once"),
    "args.lr_warmup_iters": fixed("the warm-up is over"),
    "args.global_batch_size": may("from the first iteration of the branch on"),
    "args.mix": may("other text, drawn by the checkpoint's random state", data=True),
    "args.hidden_size": _WEIGHTS,
    "args.embedding_size": _WEIGHTS,
    "args.seq_length": _WEIGHTS,
    "args.seed": fixed("it gives the language, and the random state is the checkpoint's"),
    "args.run_seed": fixed("the random state is the checkpoint's"),
    "args.pretrained_checkpoint": fixed("a branch begins with its own checkpoint"),
}
# One name for each shape of its own, and of `autoexp.backends.decay`.
_SHAPES = ("minus_sqrt", "linear", "cosine", "exponential", "power", "points")


class DemoArgs(FrozenModel):
    """Arguments of the demo trainer, named as Megatron names them."""

    train_iters: int = Field(2000, gt=0, description="iterations of the trunk")
    save_interval: int = Field(200, gt=0, description="iterations between checkpoints")
    save_at: tuple[int, ...] | None = Field(
        None, description="further iterations at which it saves; branch points are added"
    )
    log_interval: int = Field(10, gt=0, description="iterations between log lines")
    lr: float = Field(1e-2, gt=0, description="peak learning rate, constant after the warm-up")
    lr_warmup_iters: int = Field(50, ge=0, description="iterations of linear warm-up")
    global_batch_size: int = Field(256, gt=0, description="samples per iteration")
    hidden_size: int = Field(256, gt=0, description="units of the hidden layer")
    embedding_size: int = Field(24, gt=0, description="units of a character's embedding")
    seq_length: int = Field(12, gt=0, description="characters of context")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decoupled weight decay")
    seed: int = Field(1234, ge=0, description="seed of the language, the weights and the batches")
    run_seed: int | None = Field(
        None, ge=0, description="seed of the weights and the batches alone, in the same language"
    )
    mix: str | None = Field(
        None,
        pattern=r"^[a-z]+(:[0-9.]+)?(,[a-z]+(:[0-9.]+)?)*$",
        max_length=100,
        description="kinds of text in the language, with weights: `web:3,code:1`; by default web",
    )
    eval_interval: int | None = Field(
        None, gt=0, description="iterations between two measures of the validation loss"
    )
    pretrained_checkpoint: str | None = Field(
        None, description="checkpoint of another training, whose weights this one begins with"
    )
    sleep_per_iteration_ms: float = Field(
        0.0, ge=0, description="milliseconds to sleep in each iteration, to imitate a big model"
    )
    slow_save_s: float = Field(0.0, ge=0, description="additional seconds of a save, for tests")
    hold: AbsolutePath | None = Field(
        None,
        description="a directory: it waits after iteration N, ten minutes at most, while a file N "
        "is there, for drills",
    )
    ignore_checkpoint: bool = Field(
        False, description="begin at 0 whatever checkpoint is there, for tests"
    )
    write_in_place: bool = Field(
        False, description="write checkpoints over the files of older ones, for tests"
    )
    fail_at_iteration: int | None = Field(
        None, gt=0, description="iteration at which the training crashes, for tests"
    )
    nan_at_iteration: int | None = Field(
        None, gt=0, description="iteration from which the loss is NaN, for tests"
    )


class DemoBackend(BackendBase):
    """Trains `autoexp.demo.trainer` on one CPU core."""

    PROGRESS_MARK: ClassVar[bytes] = formats.PROGRESS_MARK
    SHAPES: ClassVar[Mapping[str, str]] = {name: name for name in _SHAPES}
    LOGS: ClassVar[frozenset[str]] = formats.LOGS
    HOLDS: ClassVar[bool] = True
    SEED: ClassVar[str | None] = "args.run_seed"
    BRANCH_CHANGES: ClassVar[Mapping[str, Change]] = _CHANGES
    DATA_SETS: ClassVar[tuple[str, ...]] = ("args.mix",)

    kind: Literal["demo"] = "demo"
    args: DemoArgs = DemoArgs()
    stack_signal: StackSignal | None = Field(
        "SIGQUIT", description="the signal at which it writes its stacks to its log"
    )

    @property
    def train_iters(self) -> int:
        return self.args.train_iters

    @property
    def save_interval(self) -> int:
        return self.args.save_interval

    @property
    def extra_saves(self) -> tuple[int, ...]:
        return self.args.save_at or ()

    def saving_at(self, iterations: Sequence[int]) -> Self:
        points = tuple(sorted({*self.extra_saves, *iterations}))
        args = self.args.model_copy(update={"save_at": points or None})
        return self.model_copy(update={"args": args})

    @property
    def log_interval(self) -> int | None:
        return self.args.log_interval

    def batches(self, workers: int) -> Batches | None:
        del workers  # one process, whatever the machine
        # A sample is a context and the one character after it.
        return Batches(self.args.global_batch_size, tokens_per_sample=1)

    def trunk_command(self, save_dir: Path) -> tuple[str, ...]:
        saves = ",".join(map(str, self.extra_saves))
        told = ("--save-at", saves) if saves else ()
        return (*self._command(save_dir, self.args.train_iters), *told)

    def cooldown_command(self, branch: Branch, save_dir: Path) -> tuple[str, ...]:
        falling = branch.decay_iterations - branch.hold_iterations
        return (
            *self._command(save_dir, branch.target),
            *(() if branch.is_baseline else ("--exit-on-missing-checkpoint",)),
            "--override-opt_param-scheduler",
            *("--lr-decay-style", "WSD"),
            *("--lr-decay-iters", str(branch.falls_until)),
            *("--lr-wsd-decay-iters", str(falling)),
            *("--lr-wsd-decay-style", branch.shape),
            *_curve(branch),
            *("--min-lr", repr(branch.min_lr)),
        )

    def _command(self, save_dir: Path, train_iters: int) -> tuple[str, ...]:
        arguments = self.args.model_dump(exclude={"train_iters", "save_at"}, exclude_none=True)
        flags = [
            part
            for name, value in arguments.items()
            if value is not False
            for part in (f"--{name.replace('_', '-')}", *([] if value is True else [str(value)]))
        ]
        directories = ("--save", str(save_dir), "--load", str(save_dir))
        trainer = (sys.executable, "-m", "autoexp.demo.trainer")
        return (*trainer, *directories, "--train-iters", str(train_iters), *flags)

    def parameter_count(self) -> int | None:
        """Embeddings, one hidden layer, and the softmax over 27 characters."""
        args = self.args
        hidden = args.hidden_size * (args.seq_length * args.embedding_size + 1)
        own = 27 * args.embedding_size + hidden + 27 * (args.hidden_size + 1)
        return self.parameters or own

    @property
    def merge_scores(self) -> str | None:
        return None if self.merger else "scores.json"

    def merge_command(
        self, checkpoints: Sequence[Path], weights: Sequence[float], output: Path
    ) -> tuple[str, ...]:
        if self.merger:
            return super().merge_command(checkpoints, weights, output)
        return (
            *(sys.executable, "-m", "autoexp.demo.merge", *map(str, checkpoints)),
            *("--weights", *map(repr, weights)),
            *("--output", str(output), "--scores", str(output.parent / "scores.json")),
        )

    def environment(self) -> dict[str, str]:
        return {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

    @property
    def save_now(self) -> LimitWarning:
        return LimitWarning("SIGUSR1")

    @property
    def peak_lr(self) -> float:
        return self.args.lr

    @property
    def warmup(self) -> int:
        return self.args.lr_warmup_iters

    @property
    def layout(self) -> Layout:
        return TORCH_DIST if self.args.write_in_place else _RENAMING

    def progress(self, line: bytes) -> Progress | Unread | None:
        return formats.progress(line)

    def validation(self, line: bytes) -> Validation | None:
        return formats.validation(line)

    def read_start(self, line: bytes, earlier: int | None) -> int | None:
        return formats.read_start(line, earlier)


def _curve(branch: Branch) -> tuple[str, ...]:
    """The arguments of the shapes that take more than a name."""
    if branch.shape == "power":
        return ("--lr-wsd-decay-power", repr(branch.power or DEFAULT_POWER))
    if branch.shape == "points":
        pairs = ",".join(f"{share!r}:{height!r}" for share, height in branch.points or ())
        return ("--lr-wsd-decay-points", pairs)
    return ()
