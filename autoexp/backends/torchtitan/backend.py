"""torchtitan 0.2: its own folder wins on restart, so a branch is seeded there and resumes.

Defaults that would lose the optimizer or delete branch points are overridden. Source: torchtitan
0.2.2, config/job_config.py and components/{checkpoint,lr_scheduler,metrics}.py.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from autoexp.backends.base import AbsolutePath, BackendBase
from autoexp.backends.batches import Batches
from autoexp.backends.checkpoints import Layout
from autoexp.backends.command_line import refuse_names, word
from autoexp.backends.progress_line import ProgressPattern, ValidationPattern
from autoexp.backends.protocol import (
    Branch,
    Change,
    Progress,
    Unread,
    Validation,
    fixed,
    may,
)
from autoexp.backends.torchtitan.arguments import OURS, SECTIONS, TorchtitanArgs
from autoexp.backends.torchtitan.compatibility import NEW, OLD, Dialect, dialect
from autoexp.backends.torchtitan.dialects import in_new_words, without_a_word
from autoexp.logs.event_files import RateFiles
from autoexp.logs.lines import without_escapes
from autoexp.logs.numbers import finite, number
from autoexp.model import COMPOSING
from autoexp.redaction import Variables

_FOLDER = "checkpoint"
# No `renames`: torch.distributed.checkpoint opens its shards for writing under their names, and
# renames `.metadata` alone. Source: torch 2.13, distributed/checkpoint/filesystem.py.
_LAYOUT = Layout(
    name=re.compile(r"step-(?P<iteration>\d+)"), must_exist=(".metadata",), index=".metadata"
)
# Source: torchtitan 0.2.2, components/metrics.py, log and log_validation.
_LINE = ProgressPattern(
    r"\bstep:\s{0,9}(?P<iteration>[0-9,]+)\s{1,9}loss:\s{0,9}(?P<loss>[-+]?(?:nan|inf|[0-9.eE+-]+))"
    r"(?:\s{1,9}grad_norm:\s{0,9}(?P<grad_norm>[0-9.eE+-]+))?"
)
_SPEED = re.compile(
    rb"\btps:\s{0,9}([0-9,]{1,20})(?:\s{1,9}tflops:\s{0,9}([0-9,.]{1,20}))?"
    rb"(?:\s{1,9}mfu:\s{0,9}([0-9.]{1,20})%)?"
)
_VALIDATION = ValidationPattern(
    r"\bvalidate step:\s{0,9}(?P<iteration>[0-9,]+)\s{1,9}loss:\s{0,9}(?P<loss>[0-9.eE+-]+)"
)
_VALIDATES = b"validate step:"
# Source: torchtitan 0.2.2, train.py; main of August 2026 has the same line in trainer.py.
_BEGINS = re.compile(rb"\bTraining starts at step (\d{1,18})\b")
# Source: 0.2.2, train.py, train_step; main of August 2026, components/optimizer/lr_scheduler.py,
# get_metrics. Both write them to TensorBoard alone, as their log line has no place for them.
_RATE_TAG = re.compile(rb"lr(/.*)?")
_SHAPES = {"minus_sqrt": "sqrt", "linear": "linear", "cosine": "cosine"}
_DATA = may(
    "the dataloader's state goes on in it; `checkpoint.exclude_from_loading: [dataloader]` "
    "begins at its start",
    data=True,
)
_IN_STATE = fixed("it is part of the optimizer's state in the checkpoint, which wins")
_CHANGES = {
    "variables": may(),
    "python": may(),
    "args": fixed("the checkpoint's tensors and states are of the parent's"),
    "args.job": may(),
    "args.training": may(),
    "args.training.steps": fixed("a branch ends with its decay"),
    "args.training.dataset": _DATA,
    "args.training.dataset_path": _DATA,
    "args.training.seq_len": may("from the first step of the branch on, in new samples", data=True),
    "args.training.dtype": fixed("the weights in the checkpoint have this type"),
    "args.optimizer": _IN_STATE,
    "args.lr_scheduler": fixed("the warm-up is over, and the decay says where it ends"),
    "args.checkpoint": may(),
    "args.parallelism": may("distributed checkpoints are read in any layout"),
    "args.metrics": may(),
    "args.profiling": may(),
    "args.activation_checkpoint": may(),
    "args.compile": may(),
    "args.comm": may(),
    "args.validation": may(),
    "args.debug": may(),
}


class TorchtitanBackend(BackendBase):
    """Trains with `python -m torchtitan.train`."""

    UNIT: ClassVar[str] = "steps"
    LENGTH: ClassVar[str] = "args.training.steps"
    SEED: ClassVar[str | None] = "args.debug.seed"
    SHAPES: ClassVar[Mapping[str, str]] = _SHAPES
    LOGS: ClassVar[frozenset[str]] = frozenset(
        {"loss", "grad_norm", "tokens_per_s", "tflops", "mfu", "validation_loss"}
    )
    BRANCH_CHANGES: ClassVar[Mapping[str, Change]] = _CHANGES
    DATA_SETS: ClassVar[tuple[str, ...]] = ("args.training.dataset", "args.training.dataset_path")

    kind: Literal["torchtitan"] = "torchtitan"
    module: str = Field("torchtitan.train", description="the module that runs")
    source: AbsolutePath | None = Field(
        None, description="a checkout, if torchtitan is not installed"
    )
    python: str = Field(
        default_factory=lambda: sys.executable, description="the Python that runs it"
    )
    speaks: Dialect | None = Field(
        None,
        description="0.2, or 0.3 (and main since February 2026); as the checkout says, else 0.2",
    )
    config: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_.]+/[A-Za-z0-9_]+$",
        description="for 0.3: its module and the function in it, `llama3/llama3_8b`; from "
        "`model.name` and `model.flavor` if unset",
    )
    variables: Variables = Field(default_factory=dict, description="variables that it needs")
    args: TorchtitanArgs

    @model_validator(mode="before")
    @classmethod
    def _as_its_checkout(cls, values: Any, info: ValidationInfo) -> Any:
        if info.context != COMPOSING or not isinstance(values, dict) or values.get("speaks"):
            return values
        source = values.get("source")
        found = dialect(Path(str(source)).expanduser()) if source else None
        return {**values, "speaks": found or OLD}

    @model_validator(mode="after")
    def _known(self, info: ValidationInfo) -> Self:
        composing = info.context == COMPOSING
        for section, arguments in self.args.passed_through().items():
            refuse_names(
                type(self).__name__,
                arguments,
                ours=OURS.get(section, {}),
                known=SECTIONS[section].split if composing and section in SECTIONS else None,
                at=("args", section),
            )
        return self

    @property
    def train_iters(self) -> int:
        return self.args.training.steps

    @property
    def save_interval(self) -> int:
        return self.args.checkpoint.interval

    @property
    def final_lr(self) -> float:
        return self.args.optimizer.lr * self.args.lr_scheduler.min_lr_factor

    @property
    def sources(self) -> tuple[Path, ...]:
        config = self.args.job.config_file
        named = (self.source, config)
        return tuple(Path(path) for path in named if path is not None)

    def batches(self, workers: int) -> Batches | None:
        training = self.args.training
        size = training.global_batch_size
        if size is None:
            size = training.local_batch_size * max(1, workers // self.args.replica)
        return Batches(size, training.seq_len)

    def problems(self, workers: int) -> list[str]:
        replica = self.args.replica
        found = []
        if workers % replica:
            found.append(f"{workers} processes are no multiple of the {replica} of a model replica")
        if self.speaks == NEW:
            found += self._unsaid()
        assets = str(self.args.model.__pydantic_extra__.get("hf_assets_path") or "/")
        if self.source is None and not assets.startswith("/"):
            found.append(
                f"model.hf_assets_path {assets} is a path of torchtitan's checkout: give "
                "`backend.source`, in which it then runs, or an absolute path"
            )
        return found

    def _unsaid(self) -> list[str]:
        """Reasons why 0.3 would not do what is written here."""
        found = [
            f"args.{name}: torchtitan 0.3 has no option for it: it is said in the function "
            f"{self._function}; leave it out here"
            for name in without_a_word(self.args.flat())
        ]
        parallel = self.args.parallelism.pipeline_parallel_degree > 1
        if parallel and self.args.training.global_batch_size is None:
            found.append(
                "give `args.training.global_batch_size`: in torchtitan 0.3 the samples of a step "
                "depend on the microbatches of its pipeline"
            )
        return found

    @property
    def _function(self) -> str:
        """The module and the function of 0.3's configuration."""
        model = self.args.model.__pydantic_extra__
        name, flavor = model.get("name") or "llama3", model.get("flavor") or "debugmodel"
        return self.config or f"{name}/{name}_{str(flavor).lower()}"

    @property
    def working_directory(self) -> str | None:
        """Its checkout, of which the paths in its configurations are."""
        return self.source

    def trunk_command(self, save_dir: Path) -> tuple[str, ...]:
        # Without a ratio it would decay from the end of the warm-up on.
        return self._command(save_dir, {"training.steps": self.train_iters,
                                        "lr_scheduler.decay_ratio": 0.0})  # fmt: skip

    def cooldown_command(self, branch: Branch, save_dir: Path) -> tuple[str, ...]:
        schedule = {
            "training.steps": branch.target,
            # torchtitan rounds the product, so that this is the decay's length again.
            "lr_scheduler.decay_ratio": branch.decay_iterations / branch.target,
            "lr_scheduler.decay_type": _SHAPES[branch.shape],
            "lr_scheduler.min_lr_factor": branch.min_lr / self.args.optimizer.lr,
        }
        return self._command(save_dir, schedule)

    def _command(self, save_dir: Path, schedule: dict[str, Any]) -> tuple[str, ...]:
        values = self.args.flat() | {
            "job.dump_folder": str(save_dir),
            "checkpoint.enable": True,
            "checkpoint.folder": _FOLDER,
            "checkpoint.keep_latest_k": 0,
            "checkpoint.last_save_model_only": False,
            "checkpoint.initial_load_model_only": False,
            "lr_scheduler.total_steps": schedule["training.steps"],
            **schedule,
        }
        command = (self.python, "-m", self.module)
        if self.speaks != NEW:
            return (*command, *_flags(values))
        module, _, function = self._function.partition("/")
        chosen = (f"--module={module}", f"--config={function}")
        return (*command, *chosen, *_flags(in_new_words(values)))

    def environment(self) -> dict[str, str]:
        path = {} if self.source is None else {"PYTHONPATH": self.source}
        return {"PYTHONUNBUFFERED": "1", **path, **self.variables}

    @property
    def layout(self) -> Layout:
        return _LAYOUT

    def checkpoint_folder(self, save_dir: Path) -> Path:
        return save_dir / _FOLDER

    @property
    def peak_lr(self) -> float:
        return self.args.optimizer.lr

    @property
    def warmup(self) -> int:
        return self.args.lr_scheduler.warmup_steps

    @property
    def logged(self) -> frozenset[str]:
        return self.LOGS | {"learning_rate"} if self._rates_in is not None else self.LOGS

    @property
    def _rates_in(self) -> str | None:
        """The folder of its event files below its save directory; None where it has none."""
        metrics = self.args.metrics.__pydantic_extra__
        if metrics.get("enable_tensorboard") is not True:
            return None
        return str(metrics.get("save_tb_folder") or "tb")

    def rate_files(self, save_dir: Path) -> RateFiles | None:
        if self._rates_in is None:
            return None
        # Of all ranks, one is enough: they have the same rates.
        ranks = self.args.metrics.__pydantic_extra__.get("save_for_all_ranks")
        names = f"*/{'rank_0/' if ranks is True else ''}events.out.tfevents.*"
        return RateFiles(save_dir / self._rates_in, names, _RATE_TAG)

    def progress(self, line: bytes) -> Progress | Unread | None:
        if _VALIDATES in line:
            return None
        found = _LINE.read(line)
        if (
            not isinstance(found, Progress)
            or (speed := _SPEED.search(without_escapes(line))) is None
        ):
            return found
        return found._replace(
            tokens_per_s=finite(number(speed[1])),
            tflops=finite(number(speed[2] or b"nan")),
            mfu=finite(number(speed[3] or b"nan")),
        )

    def validation(self, line: bytes) -> Validation | None:
        return _VALIDATION.read(line) if _VALIDATES in line else None

    def read_start(self, line: bytes, earlier: int | None) -> int | None:
        del earlier
        match = _BEGINS.search(without_escapes(line))
        return int(match[1]) - 1 if match else None


def _flags(values: dict[str, Any]) -> Iterator[str]:
    """`--training.steps 100`; a switch that is off is `--checkpoint.no_enable`."""
    for name, value in values.items():
        section, _, key = name.partition(".")
        if value is True:
            yield f"--{name}"
        elif value is False:
            yield f"--{section}.no_{key}" if key else f"--no_{section}"
        elif isinstance(value, tuple | list):
            yield from (f"--{name}", *map(word, value))
        elif value is not None:
            yield from (f"--{name}", word(value))
