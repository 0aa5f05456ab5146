"""Megatron-LM: cooldowns as WSD branches that go on from their own, seeded save directory.

A branch runs with `--load` equal to `--save` and without `--ckpt-step`: restarted, it goes on from
its own progress. It keeps the trunk's `--lr` and `--min-lr`, with which checkpoints are found.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from autoexp.backends.base import AbsolutePath, BackendBase
from autoexp.backends.batches import Batches
from autoexp.backends.checkpoints import Layout
from autoexp.backends.command_line import flags, refuse_names
from autoexp.backends.megatron import formats
from autoexp.backends.megatron.arguments import MegatronArgs
from autoexp.backends.megatron.branch_changes import BRANCH_CHANGES
from autoexp.backends.megatron.known_arguments import OURS, PASSED_THROUGH
from autoexp.backends.megatron.source_reader import names_in
from autoexp.backends.protocol import (
    Branch,
    Change,
    Progress,
    Unread,
    Validation,
)
from autoexp.model import COMPOSING


class MegatronBackend(BackendBase):
    """Trains with Megatron-LM's own script."""

    PROGRESS_MARK: ClassVar[bytes] = formats.PROGRESS_MARK
    SHAPES: ClassVar[Mapping[str, str]] = {
        name: name for name in ("minus_sqrt", "linear", "cosine", "exponential")
    }
    LOGS: ClassVar[frozenset[str]] = formats.LOGS
    HOLDS: ClassVar[bool] = True
    SEED: ClassVar[str | None] = "args.seed"
    BRANCH_CHANGES: ClassVar[Mapping[str, Change]] = BRANCH_CHANGES
    DATA_SETS: ClassVar[tuple[str, ...]] = ("args.data_path", "args.train_data_path")

    kind: Literal["megatron"] = "megatron"
    source: AbsolutePath = Field(
        description="the Megatron-LM checkout that runs, as seen by the job"
    )
    script: str = Field("pretrain_gpt.py", description="the script in it")
    python: str = Field(
        default_factory=lambda: sys.executable, description="the Python that runs it"
    )
    takes_rampup: bool = Field(
        False,
        description="true says of a checkout that cannot be read from here, as inside an image, "
        "that it is older than core_v0.18, which ignores `rampup_batch_size`",
    )
    args: MegatronArgs

    @model_validator(mode="after")
    def _known(self, info: ValidationInfo) -> Self:
        refuse_names(
            type(self).__name__,
            self.args.passed_through,
            ours=OURS,
            known=self._names if info.context == COMPOSING else None,
            at=("args",),
        )
        return self

    def _names(self) -> frozenset[str]:
        """Argument names of the checkout if it is readable; otherwise those known from releases."""
        return names_in(Path(self.source), self.script) or PASSED_THROUGH

    @property
    def train_iters(self) -> int:
        return self.args.train_iters

    @property
    def save_interval(self) -> int:
        return self.args.save_interval

    @property
    def log_interval(self) -> int | None:
        return self.args.log_interval

    @property
    def logged(self) -> frozenset[str]:
        return self.LOGS | {"tflops"} if self.args.log_throughput else self.LOGS

    @property
    def final_lr(self) -> float:
        return self.args.min_lr

    @property
    def sources(self) -> tuple[Path, ...]:
        return (Path(self.source) / self.script,)

    def batches(self, workers: int) -> Batches | None:
        del workers  # the global batch size is that of all of them
        return self.args.batches

    def problems(self, workers: int) -> list[str]:
        args = self.args
        found = []
        replica = (
            args.tensor_model_parallel_size
            * args.pipeline_model_parallel_size
            * args.context_parallel_size
        )
        if workers % replica:
            found.append(f"{workers} processes are no multiple of the {replica} of a model replica")
        else:
            step = args.micro_batch_size * (workers // replica)
            if any(size % step for size in args.batch_sizes):
                found.append(
                    f"batch sizes have to be multiples of {step}: micro_batch_size "
                    f"{args.micro_batch_size} on {workers // replica} replicas"
                )
        # The data can be named in other ways, which pass through.
        others = {"data_args_path", "train_data_path", "per_split_data_args_path", "sft"}
        if args.data_path is None and not args.mock_data and not others & set(args.model_dump()):
            found.append("no data: give `backend.args.data_path`, or `mock_data: true`")
        if args.overlap_param_gather and not args.may_overlap_gathers:
            found.append(
                "`overlap_param_gather` needs `use_distributed_optimizer: true` and "
                "`overlap_grad_reduce: true`"
            )
        if args.passed_through.get("lr_warmup_fraction") is not None:
            found.append(
                "lr_warmup_fraction: it moves with the length, which a branch changes: "
                "give lr_warmup_iters"
            )
        return found + self._misread_growth()

    def _misread_growth(self) -> list[str]:
        """Reasons why this checkout would not grow its batches as they are counted here."""
        args, names = self.args, names_in(Path(self.source), self.script)
        steps = "step_batch_size_schedule"
        if args.rampup_batch_size is not None and steps in names:
            return [
                "rampup_batch_size: this checkout takes it and ignores it, as all since core_v0.18 "
                f"(April 2026): lengths would be wrong; give `{steps}`"
            ]
        if args.rampup_batch_size is not None and not names and not self.takes_rampup:
            return [
                f"rampup_batch_size: Megatron-LM ignores it since core_v0.18, and {self.source} "
                f"cannot be read from here: give `{steps}`, or `backend.takes_rampup: true` for an "
                "older one"
            ]
        if args.step_batch_size_schedule is not None and names and steps not in names:
            return [f"{steps}: this checkout is older than core_v0.18; give `rampup_batch_size`"]
        return []

    def parameter_count(self) -> int | None:
        return self.parameters or self.args.parameters

    def trunk_command(self, save_dir: Path) -> tuple[str, ...]:
        schedule: dict[str, object] = {
            "lr_decay_style": "constant",
            **self._lengths(self.args.train_iters),
        }
        return self._command(save_dir, schedule)

    def cooldown_command(self, branch: Branch, save_dir: Path) -> tuple[str, ...]:
        schedule: dict[str, object] = {
            "exit_on_missing_checkpoint": not branch.is_baseline,
            "lr_decay_style": "WSD",
            "lr_wsd_decay_style": branch.shape,
            **self._lengths(branch.target),
            **self._decay(branch),
            **({"min_lr": branch.min_lr} if branch.is_baseline else {}),
        }
        return self._command(save_dir, schedule)

    def _decay(self, branch: Branch) -> dict[str, int]:
        """Where the decay ends, and its length.

        Megatron's scheduler counts samples, and has those of the trunk in its state: with another
        batch size, its iterations are those that the trunk would have taken with that size.
        """
        if self.args.grows:
            end, start = map(self.args.batches.samples, (branch.falls_until, branch.falls_from))
            return {"lr_decay_samples": end, "lr_wsd_decay_samples": end - start}
        before, warmup = branch.iteration, self.args.lr_warmup_iters
        if branch.samples is not None:
            before = branch.samples // self.args.global_batch_size
        return {
            "lr_decay_iters": before + branch.falls_until - branch.iteration,
            "lr_wsd_decay_iters": branch.falls_until - branch.falls_from,
            "lr_warmup_iters": warmup if branch.is_baseline else min(warmup, before),
        }

    def _lengths(self, target: int) -> dict[str, int]:
        """Lengths of training, warm-up and decay: in samples where the batch size grows.

        Megatron refuses a ramp with iterations, and its scheduler counts samples.
        """
        unit = "iters"
        count: Callable[[int], int] = int
        if self.args.grows:
            unit, count = "samples", self.args.batches.samples
        return {
            f"train_{unit}": count(target),
            f"lr_decay_{unit}": count(target),
            f"lr_warmup_{unit}": count(self.args.lr_warmup_iters),
        }

    def _command(self, save_dir: Path, schedule: dict[str, object]) -> tuple[str, ...]:
        return (
            *(self.python, str(Path(self.source) / self.script)),
            *("--save", str(save_dir), "--load", str(save_dir)),
            # A checkpoint's schedule must not win; this is also needed for extending a training.
            "--override-opt_param-scheduler",
            *flags(schedule),
            *flags({k: v for k, v in self.args.for_command_line().items() if k not in schedule}),
        )

    def environment(self) -> dict[str, str]:
        # Python buffers what goes into a file. The ranks are those of a single process, which
        # Megatron asks for too; a launcher sets others.
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        # Megatron asks for it with tensor parallelism, and refuses it with FSDP.
        connections = {} if self.args.uses_fsdp else {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}
        return {"PYTHONUNBUFFERED": "1", **connections, **alone}

    def refusals(self, branch: Branch) -> list[str]:
        args = self.args
        reasons = super().refusals(branch)
        if branch.is_baseline:
            return reasons
        if branch.min_lr != args.min_lr:
            reasons.append(
                f"min_lr {branch.min_lr:g} is not the training's own {args.min_lr:g}: Megatron "
                "finds a checkpoint's parameter groups by it and refuses another; "
                "set backend.args.min_lr"
            )
        growth = args.passed_through.get("weight_decay_incr_style")
        if growth not in (None, "constant"):
            reasons.append(
                f"weight_decay_incr_style {growth} spreads over the whole length, which a branch "
                "changes: the weight decay would jump at the branch point"
            )
        if branch.samples is not None and branch.samples % args.global_batch_size:
            reasons.append(
                f"{branch.samples} samples at the branch point are no multiple of "
                f"global_batch_size {args.global_batch_size}: Megatron's scheduler counts "
                "samples, and the decay would begin within an iteration"
            )
        return reasons

    def retention_refusal(self, iteration: int) -> str | None:
        kept = self.args.save_retain_interval
        if kept is None or iteration % kept == 0:
            return None
        return (
            f"save_retain_interval {kept} deletes its checkpoint as soon as there is a newer "
            "one; branch at multiples of it"
        )

    @property
    def peak_lr(self) -> float:
        return self.args.lr

    @property
    def warmup(self) -> int:
        return self.args.lr_warmup_iters

    @property
    def layout(self) -> Layout:
        torch_dist = self.args.ckpt_format == "torch_dist"
        return formats.TORCH_DIST if torch_dist else formats.TORCH

    def progress(self, line: bytes) -> Progress | Unread | None:
        return formats.progress(line)

    def validation(self, line: bytes) -> Validation | None:
        return formats.validation(line)

    def read_start(self, line: bytes, earlier: int | None) -> int | None:
        return formats.read_start(line, earlier)
