"""Any script that uses Hugging Face's Trainer; it gets the checkpoint to resume from.

The Trainer resumes only if its script requests it, and most scripts request it only
when given the option. Its log has no step numbers, so the history comes from `trainer_state.json`,
which lands last in each checkpoint. Source: Transformers 5, trainer.py, trainer_callback.py and
optimization.py.
"""

import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from autoexp.backends.base import AbsolutePath, BackendBase
from autoexp.backends.batches import Batches
from autoexp.backends.checkpoints import Layout
from autoexp.backends.command_line import Argument, refuse_names, word
from autoexp.backends.decay import decayed
from autoexp.backends.huggingface.arguments import OURS, TrainerArgs
from autoexp.backends.protocol import (
    UNDECIDED,
    Branch,
    Change,
    CheckpointScan,
    FoundCheckpoint,
    Progress,
    Validation,
    fixed,
    may,
)
from autoexp.logs.numbers import MOST_ITERATIONS
from autoexp.model import COMPOSING
from autoexp.redaction import Variables
from autoexp.storage import atomic

_STATE = "trainer_state.json"
# No `renames`: the optimizer, the random state and `trainer_state.json` are opened for writing
# under their names, the weights alone are not (seen). Source: trainer.py, _save_checkpoint.
_LAYOUT = Layout(
    name=re.compile(r"checkpoint-(?P<iteration>\d+)"),
    must_parse=(_STATE,),
    must_not_exist=("checkpoint-is-incomplete.txt",),
)
# The Trainer's lines at log level info: of Transformers 5 and, behind `|`, of 4.
_STARTED = b"***** Running training *****"
_RESUMED = re.compile(
    rb"\bResuming training from checkpoint with epoch \d+ and global step (\d{1,18})"
    rb"|\bContinuing training from global step (\d{1,18})"
)
_EVALUATED = re.compile(r"eval_(?:([\w.-]{1,40})_)?loss")
_LOGGED = re.compile(rb"\{.*'(?:train_)?loss': ")
# Runs in the job at each start: finds the newest checkpoint saved meanwhile.
_RESUME = (
    "import os,sys; d,*w=sys.argv[1:]; h=os.path.join; x=os.path.exists; "
    "n=[int(c[11:]) for c in (os.listdir(d) if x(d) else []) "
    "if c[:11]=='checkpoint-' and c[11:].isdecimal() and x(h(d,c,'trainer_state.json')) "
    "and not x(h(d,c,'checkpoint-is-incomplete.txt'))]; "
    "w+=['--resume_from_checkpoint',h(d,f'checkpoint-{max(n)}')] if n else []; "
    "os.execv(sys.executable,[sys.executable,*w])"
)
_MERGER = Path(__file__).parents[1] / "merge.py"
_CONSTANT = "constant_with_warmup"
_SCHEDULE = {"max_steps", "lr_scheduler_type", "lr_scheduler_kwargs"}  # each command has its own
_SHAPES = {"minus_sqrt": "1-sqrt", "linear": "linear", "cosine": "cosine"}
_DATA = may(
    "the Trainer skips as many batches of the new data as it has trained, unless "
    "`ignore_data_skip: true`",
    data=True,
)
# Source: trainer.py, _inner_training_loop and _load_optimizer_and_scheduler: what is in
# `optimizer.pt`, `scheduler.pt` and `trainer_state.json` of the checkpoint wins.
_IN_STATE = fixed("the Trainer takes it from the checkpoint's own state")
_CHANGES = {
    "variables": may(),
    "python": may(),
    "script_args": _DATA,
    "tokens_per_sample": may(),
    "samples": may(),
    "args": may(),
    "args.max_steps": fixed("a branch ends with its decay"),
    "args.learning_rate": _IN_STATE,
    "args.warmup_steps": fixed("the warm-up is over"),
    "args.lr_scheduler_type": fixed("a branch decays as `decay` says"),
    "args.lr_scheduler_kwargs": fixed("a branch decays as `decay` says"),
    "args.per_device_train_batch_size": fixed(
        "the Trainer takes it from trainer_state.json; change gradient_accumulation_steps"
    ),
    "args.weight_decay": _IN_STATE,
    "args.adam_beta1": _IN_STATE,
    "args.adam_beta2": _IN_STATE,
    "args.adam_epsilon": _IN_STATE,
    "args.optim": fixed("the optimizer's state in the checkpoint is of another one"),
    "args.optim_args": _IN_STATE,
    "args.optim_target_modules": fixed("the optimizer's state in the checkpoint has no others"),
    "args.seed": may(),
}


class HuggingFaceBackend(BackendBase):
    """Trains with a script whose arguments are TrainingArguments and its own."""

    UNIT: ClassVar[str] = "steps"
    LENGTH: ClassVar[str] = "args.max_steps"
    SEED: ClassVar[str | None] = "args.seed"
    SHAPES: ClassVar[Mapping[str, str]] = _SHAPES
    LOGS: ClassVar[frozenset[str]] = frozenset(
        {"loss", "learning_rate", "grad_norm", "validation_loss"}
    )
    BRANCH_CHANGES: ClassVar[Mapping[str, Change]] = _CHANGES
    DATA_SETS: ClassVar[tuple[str, ...]] = ("script_args.dataset_name", "script_args.train_file")

    kind: Literal["huggingface"] = "huggingface"
    script: AbsolutePath = Field(
        description="the script; it passes on `resume_from_checkpoint`, or resumes by itself"
    )
    python: str = Field(
        default_factory=lambda: sys.executable, description="the Python that runs it"
    )
    resume: bool = Field(
        True,
        description="give it `--resume_from_checkpoint` with its last checkpoint; off for a "
        "script that does not take that argument and resumes by itself",
    )
    script_args: dict[str, Argument] = Field(
        default_factory=dict, description="arguments of the script's own"
    )
    tokens_per_sample: int | None = Field(None, gt=0, description="for budgets in tokens")
    samples: int | None = Field(
        None, gt=0, description="samples of the data set, for lengths in epochs"
    )
    variables: Variables = Field(default_factory=dict, description="variables that it needs")
    args: TrainerArgs

    @model_validator(mode="after")
    def _known(self, info: ValidationInfo) -> Self:
        title = type(self).__name__
        known = TrainerArgs.also_known if info.context == COMPOSING else None
        refuse_names(title, self.args.__pydantic_extra__, ours=OURS, known=known, at=("args",))
        refuse_names(title, self.script_args, ours=OURS, at=("script_args",))
        return self

    @property
    def train_iters(self) -> int:
        return self.args.max_steps

    @property
    def save_interval(self) -> int:
        return self.args.save_steps

    @property
    def sources(self) -> tuple[Path, ...]:
        return (Path(self.script),)

    def batches(self, workers: int) -> Batches | None:
        args = self.args
        size = args.per_device_train_batch_size * args.gradient_accumulation_steps * workers
        return Batches(size, self.tokens_per_sample, per_epoch=self._steps_of_an_epoch(workers))

    def _steps_of_an_epoch(self, workers: int) -> int | None:
        """Steps that see the data set once. Source: trainer.py, set_initial_training_values."""
        if self.samples is None:
            return None
        passes = self.samples / (self.args.per_device_train_batch_size * workers)
        whole = math.floor(passes) if self.args.dataloader_drop_last else math.ceil(passes)
        return max(1, math.ceil(whole / self.args.gradient_accumulation_steps))

    def trunk_command(self, save_dir: Path) -> tuple[str, ...]:
        own = self.args.lr_scheduler_kwargs
        schedule = {
            "max_steps": self.train_iters,
            "lr_scheduler_type": self.args.lr_scheduler_type or _CONSTANT,
            "lr_scheduler_kwargs": None if own is None else json.dumps(own),
        }
        return self._command(save_dir, schedule)

    def refusals(self, branch: Branch) -> list[str]:
        reasons = super().refusals(branch)
        schedule = self.args.lr_scheduler_type or _CONSTANT
        if schedule not in (_CONSTANT, "constant") and not branch.is_baseline:
            reasons.append(
                f"lr_scheduler_type {schedule}: the rate of this training falls by itself, and a "
                "cooldown begins at its peak; leave it out where cooldowns branch"
            )
        return reasons

    def cooldown_command(self, branch: Branch, save_dir: Path) -> tuple[str, ...]:
        decay = {
            "num_decay_steps": branch.decay_iterations,
            "decay_type": _SHAPES[branch.shape],
            "min_lr_ratio": branch.min_lr / self.args.learning_rate,
        }
        schedule = {
            "max_steps": branch.target,
            "lr_scheduler_type": "warmup_stable_decay",
            "lr_scheduler_kwargs": json.dumps(decay),
        }
        return self._command(save_dir, schedule)

    def _command(self, save_dir: Path, schedule: dict[str, Any]) -> tuple[str, ...]:
        values = {
            "output_dir": str(save_dir),
            **schedule,
            **self.args.model_dump(exclude=_SCHEDULE, exclude_none=True),
            "save_strategy": "steps",
            "logging_strategy": "steps",
            # A NaN would be averaged away.
            "logging_nan_inf_filter": False,
            **self.script_args,
        }
        words = (
            part
            for name, value in values.items()
            if value is not None
            for part in (f"--{name}", *map(word, value if isinstance(value, tuple) else (value,)))
        )
        # Another launcher in the interpreter's place, torchrun say, does not take a program's text.
        if not self.resume or "python" not in Path(self.python).name:
            return (self.python, self.script, *words)
        return (self.python, "-c", _RESUME, str(values["output_dir"]), self.script, *words)

    def merge_command(
        self, checkpoints: Sequence[Path], weights: Sequence[float], output: Path
    ) -> tuple[str, ...]:
        """The project's merger by its path, in the script's Python, which has NumPy and torch."""
        if self.merger:
            return super().merge_command(checkpoints, weights, output)
        is_python = "python" in Path(self.python).name
        return (
            *(self.python if is_python else sys.executable, str(_MERGER), *map(str, checkpoints)),
            *("--weights", *map(repr, weights), "--output", str(output)),
        )

    def environment(self) -> dict[str, str]:
        return {"PYTHONUNBUFFERED": "1", **self.variables}

    def retention_refusal(self, iteration: int) -> str | None:
        del iteration
        limit = self.args.save_total_limit
        if limit is None:
            return None
        return (
            f"save_total_limit {limit} deletes its checkpoint, perhaps before "
            "anybody sees it; leave it out where cooldowns branch"
        )

    @property
    def layout(self) -> Layout:
        return _LAYOUT

    @property
    def peak_lr(self) -> float:
        return self.args.learning_rate

    @property
    def warmup(self) -> int:
        return self.args.warmup_steps

    def planned_rate(self, branch: Branch, iteration: int) -> float | None:
        # Its warm-up begins at the final rate. Source: optimization.py, _get_wsd_scheduler_lambda.
        peak, floor = self.peak_lr, branch.min_lr
        return decayed(peak, branch, iteration, warmup=self.warmup, first=floor)

    def checkpoints(self, save_dir: Path) -> CheckpointScan:
        scan = super().checkpoints(save_dir)
        # The state file of a renamed or copied folder has the right iteration.
        own = [
            found for found in scan.complete if _state(found).get("global_step") == found.iteration
        ]
        if not own:
            return scan._replace(complete=own)
        state = _state(own[-1])
        return scan._replace(
            complete=own, progress=_history(state), validations=tuple(_validations(state))
        )

    def clear_torn(self, save_dir: Path) -> list[str]:
        # The Trainer would resume from a torn one, and crash.
        return _LAYOUT.clear_torn(save_dir)

    def read_start(self, line: bytes, earlier: int | None) -> int | None:
        if match := _RESUMED.search(line):
            return int(match[1] or match[2])
        if _STARTED in line:
            return UNDECIDED
        # If it had resumed, that would be in the log before any progress.
        return 0 if earlier == UNDECIDED and _LOGGED.search(line) else None


def _state(found: FoundCheckpoint) -> dict[str, Any]:
    try:
        state = json.loads(atomic.read(found.path / _STATE))
    except (FileNotFoundError, atomic.WrongFile, ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) else {}


def _validations(state: dict[str, Any]) -> Iterator[Validation]:
    """The validation losses in a checkpoint's history: `eval_loss`, or `eval_NAME_loss`."""
    history = state.get("log_history")
    for entry in history if isinstance(history, list) else ():
        if not isinstance(entry, dict) or not _is_iteration(entry.get("step")):
            continue
        for key, value in entry.items():
            match = _EVALUATED.fullmatch(str(key))
            loss = None if match is None else _finite(value)
            if match is not None and loss is not None:
                yield Validation(entry["step"], loss, match[1] or "validation")


def _history(state: dict[str, Any]) -> tuple[Progress, ...]:
    """The history in a checkpoint; a loss that is not finite becomes None."""
    target, history = state.get("max_steps"), state.get("log_history")
    return tuple(
        Progress(
            iteration=entry["step"],
            target=target if _is_iteration(target) else None,
            loss=_finite(entry["loss"]),
            learning_rate=_finite(entry.get("learning_rate")),
            seconds_per_iteration=None,
            grad_norm=_finite(entry.get("grad_norm")),
        )
        for entry in (history if isinstance(history, list) else ())
        if isinstance(entry, dict) and "loss" in entry and _is_iteration(entry.get("step"))
    )


def _is_iteration(value: Any) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole and 0 <= value < MOST_ITERATIONS


def _finite(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
