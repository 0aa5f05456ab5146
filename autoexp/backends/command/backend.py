"""Any trainer, described in YAML: its command, checkpoints and progress lines."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

from pydantic import ConfigDict, Field, ValidationInfo, model_validator

from autoexp.backends.base import AbsolutePath, BackendBase
from autoexp.backends.batches import Batches
from autoexp.backends.checkpoints import Layout
from autoexp.backends.command.checkpoints import Checkpoints
from autoexp.backends.command.placeholders import change_options, names_of, substitute
from autoexp.backends.command.settings_file import SettingsFile
from autoexp.backends.command_line import Argument, refuse_names, word
from autoexp.backends.progress_line import ProgressPattern, ValidationPattern
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
from autoexp.logs.linear import refuse_slow
from autoexp.logs.patterns import groups_of
from autoexp.model import COMPOSING, FrozenModel
from autoexp.redaction import Variables
from autoexp.rules.actions import Shape

_CHANGES = {
    "variables": may(),
    "args": may("autoexp cannot know what your trainer keeps: try it", data=True),
    "args.train_iters": fixed("a branch ends with its decay"),
    "args.lr_warmup_iters": fixed("the warm-up is over"),
}
_EXAMPLE = Branch(iteration=1, decay_iterations=1, shape="linear", min_lr=0.0)
# Placeholders that say where a decay begins.
_PLACES = frozenset({"decay_start", "decay_iterations", "decay_fraction"})


class CommandArgs(FrozenModel):
    """The arguments that autoexp uses; your own serve as placeholders."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, Argument]

    train_iters: int = Field(gt=0, description="iterations of the trunk")
    save_interval: int = Field(gt=0, description="iterations between checkpoints")
    lr: float | None = Field(None, gt=0, description="peak learning rate")
    min_lr: float = Field(0.0, ge=0, description="learning rate at a cooldown's end")
    lr_warmup_iters: int = Field(0, ge=0, description="iterations of warm-up")
    samples_per_iteration: int | None = Field(None, gt=0, description="for budgets in samples")
    tokens_per_sample: int | None = Field(None, gt=0, description="for budgets in tokens")
    save_at: tuple[int, ...] | None = Field(
        None, description="further iterations at which it saves; branch points are added"
    )


class CommandBackend(BackendBase):
    """Your own trainer, without Python code in autoexp."""

    # A pattern of somebody's own may be wrong; other trainers print hundreds of settings first.
    LINES_BEFORE_PROGRESS: ClassVar[int | None] = 40
    LOGS_DONE: ClassVar[bool] = False
    BRANCH_CHANGES: ClassVar[Mapping[str, Change]] = _CHANGES

    kind: Literal["command"] = "command"
    command: tuple[str, ...] = Field(
        min_length=1,
        description="words of the command line; `{save_dir}`, `{source}`, `{python}` and each "
        "argument's name in braces stand for its value, and so does arithmetic, "
        "`{train_iters * 2}`",
    )
    cooldown: dict[str, Argument] = Field(
        default_factory=dict,
        description="options that a cooldown adds or changes; null removes one. Beside the others: "
        "`{branch_iteration}`, `{decay_start}`, `{decay_iterations}`, `{decay_fraction}`, "
        "`{shape}`",
    )
    baseline: dict[str, Argument] | None = Field(
        None,
        description="options of a baseline, a training from scratch whose rate decays, with the "
        "placeholders of `cooldown`; unset: it has none",
    )
    save_at: dict[str, Argument] = Field(
        default_factory=dict,
        description="options that the training gets where branch points lie off its "
        "`save_interval`: `{--save-at: '{save_at}'}`, the iterations joined by commas",
    )
    resume: dict[str, Argument] = Field(
        default_factory=dict,
        description="options that are added where there is a checkpoint to go on from, such as "
        "`{--init_from: resume}`; `{checkpoint}` is the newest one's path",
    )
    settings: SettingsFile | None = Field(
        None,
        description="a settings file that is made for each job from a template; `{settings}` is "
        "its path",
    )
    cwd: AbsolutePath | None = Field(
        None, description="directory that it runs in; the job's own if unset"
    )
    shapes: dict[str, str] = Field(
        default_factory=lambda: {x: x for x in ("minus_sqrt", "linear", "cosine")},
        description="decay shapes by the trainer's own names; others are refused. A curve that "
        "none of them is goes by `points`: `{points: my-curve}`",
    )
    saves: Checkpoints = Field(description="its checkpoints")
    log_line: str = Field(
        description="regular expression of a progress line, with groups `iteration`, `loss`, "
        "`learning_rate`, `seconds`, `grad_norm`, `tokens_per_s`, `tflops`, `mfu` (per cent); "
        "colours are taken out "
        "before, and of a long line it sees the first 1 to 64 KiB, the less the more repeats it "
        "has",
    )
    validation_line: str | None = Field(
        None,
        description="regular expression of a line with a validation loss, with groups `iteration` "
        "and `loss`, and `set` where there are several sets",
    )
    start_line: str | None = Field(
        None,
        description="regular expression of the line with which it says where it begins, with a "
        "group `iteration`: the checkpoint's, 0 without one",
    )
    warn_signal: Literal["TERM", "USR1", "USR2"] = Field(
        "TERM", description="signal at which it saves and ends, as its time limit is near"
    )
    warn_file: str | None = Field(
        None,
        description="file at which it saves and ends, in place of a signal: an absolute path, or "
        "below `{save_dir}`; it is made at the warning and removed before the next attempt",
    )
    save_signal: Literal["USR1", "USR2", "HUP"] | None = Field(
        None, description="signal at which it saves at once and goes on, for `autoexp save`"
    )
    save_file: str | None = Field(
        None,
        description="file at which it does so, in place of a signal, and which it removes then: an "
        "absolute path, or below `{save_dir}`",
    )
    source: AbsolutePath | None = Field(None, description="its checkout, as seen by the job")
    python: str | None = Field(
        None,
        min_length=1,
        description="what `{python}` stands for, where the trainer has an environment of its own; "
        "the Python of autoexp if unset",
    )
    variables: Variables = Field(default_factory=dict, description="variables that it needs")
    args: CommandArgs

    @model_validator(mode="after")
    def _placeholders_fit(self, info: ValidationInfo) -> Self:
        extra = self.args.__pydantic_extra__
        refuse_names(type(self).__name__, extra, ours={}, at=("args",))
        ProgressPattern(self.log_line)
        if self.start_line is not None:
            ProgressPattern(self.start_line)
        if self.validation_line is not None:
            ValidationPattern(self.validation_line)
        if info.context == COMPOSING:
            self._refuse_unknown_shapes()
            for pattern in (self.log_line, self.start_line, self.validation_line):
                if pattern is not None:
                    refuse_slow(pattern)
        for name in ("warn_file", "save_file"):
            file = getattr(self, name)
            if file is not None and not file.startswith(("/", "{save_dir}/")):
                raise ValueError(f"`{name}` has to be absolute, or to begin with `{{save_dir}}/`")
        if self.save_signal is not None and self.save_signal == self.warn_signal:
            raise ValueError(f"`save_signal`: at {self.warn_signal} it saves and ends")
        own = self._values(self.args.train_iters, Path())
        used = names_of(self.command, own, "command")
        branch = {**own, **_branch_values(_EXAMPLE, "linear")}
        resuming = {**own, "checkpoint": ""}  # known once the job starts
        saving = {**own, "save_at": ""}
        for where, options, known in (
            ("cooldown", self.cooldown, branch),
            ("baseline", self.baseline, branch),
            ("resume", self.resume, resuming),
            ("save_at", self.save_at, saving),
        ):
            used |= names_of(_texts(options), known, where)
        if (settings := self.settings) is not None:
            used |= names_of(
                _texts(settings.set, settings.cooldown, settings.baseline, settings.resume),
                branch,
                "settings",
            )
            used |= names_of(_texts(settings.save_at), saving, "settings.save_at")
            if "settings" not in used:
                raise ValueError("`settings`: write {settings} where `command` takes its path")
        if self.args.save_at is not None and not self._can_be_told:
            raise ValueError("`args.save_at`: say in `save_at` how the trainer is told")
        unused = [name for name in extra if name not in used]
        if unused:
            raise ValueError(
                f"nothing reads {', '.join(f'`args.{name}`' for name in unused)}: "
                f"write {{{unused[0]}}} where it belongs in `command`"
            )
        self._try(info)
        return self

    def _refuse_unknown_shapes(self) -> None:
        known = get_args(Shape)
        for name in self.shapes.keys() - set(known):
            raise ValueError(
                f"`shapes.{name}`: no cooldown has this shape; there are {', '.join(known)}. A "
                f"curve of your own is described by `points`: `shapes: {{points: {name}}}`"
            )

    def _try(self, info: ValidationInfo) -> None:
        """Refuse arithmetic with what is no number while the configuration is composed."""
        if info.context == COMPOSING:
            self.trunk_command(Path("/"))
            self.cooldown_command(_EXAMPLE, Path("/"))
            self.files(_EXAMPLE, Path("/"))
            if self._has_baselines:
                self.cooldown_command(_EXAMPLE.from_scratch(), Path("/"))
                self.files(_EXAMPLE.from_scratch(), Path("/"))

    @property
    def train_iters(self) -> int:
        return self.args.train_iters

    @property
    def save_interval(self) -> int:
        return self.args.save_interval

    @classmethod
    def seed_key(cls, values: Mapping[str, Any]) -> str | None:
        """`args.seed`, where the trainer is given one."""
        return "args.seed" if "seed" in (values.get("args") or {}) else None

    @property
    def logged(self) -> frozenset[str]:
        found = frozenset(groups_of(self.log_line)) - {"iteration"}
        return found if self.validation_line is None else found | {"validation_loss"}

    @property
    def final_lr(self) -> float:
        return self.args.min_lr

    @property
    def sources(self) -> tuple[Path, ...]:
        return () if self.source is None else (Path(self.source),)

    def batches(self, workers: int) -> Batches | None:
        del workers  # an iteration's samples are all processes'
        samples = self.args.samples_per_iteration
        return None if samples is None else Batches(samples, self.args.tokens_per_sample)

    @property
    def extra_saves(self) -> tuple[int, ...]:
        return self.args.save_at or ()

    @property
    def _can_be_told(self) -> bool:
        """True if the description says how it is told to save at other iterations."""
        return bool(self.save_at or (self.settings is not None and self.settings.save_at))

    def saving_at(self, iterations: Sequence[int]) -> Self:
        if not self._can_be_told:
            return self
        points = tuple(sorted({*self.extra_saves, *iterations}))
        args = self.args.model_copy(update={"save_at": points or None})
        return self.model_copy(update={"args": args})

    def trunk_command(self, save_dir: Path) -> tuple[str, ...]:
        values = self._of_trunk(save_dir)
        command = [substitute(text, values) for text in self.command]
        told = _filled(self.save_at, values) if self.extra_saves else {}
        return tuple(change_options(command, told))

    def cooldown_command(self, branch: Branch, save_dir: Path) -> tuple[str, ...]:
        values = self._of_branch(branch, save_dir)
        command = [substitute(text, values) for text in self.command]
        options = self.baseline or {} if branch.is_baseline else self.cooldown
        return tuple(change_options(command, _filled(options, values)))

    @property
    def _has_baselines(self) -> bool:
        """True if the description says how a baseline is run."""
        return self.baseline is not None or (
            self.settings is not None and self.settings.baseline is not None
        )

    def refusals(self, branch: Branch) -> list[str]:
        reasons = super().refusals(branch)
        changes = self.cooldown or (self.settings and self.settings.cooldown)
        if not branch.is_baseline and not changes:
            reasons.append("`backend.cooldown` does not define what a cooldown changes")
        elif branch.is_baseline and not self._has_baselines:
            reasons.append(
                "the description has no `backend.baseline`: the options with which the trainer's "
                "rate decays in a run from scratch"
            )
        elif branch.is_baseline and branch.falls_from != self.warmup:
            if not self._placed(self.baseline, "baseline") & _PLACES:
                reasons.append(
                    "`backend.baseline` says nothing of where the decay begins: the rate of this "
                    "trainer decays over the whole run, so leave the decay's length out"
                )
        elif branch.stable_iterations and not branch.is_baseline:
            placed = self._placed(self.cooldown, "cooldown")
            if "branch_iteration" in placed and "decay_start" not in placed:
                reasons.append(
                    "no `stable`: `backend.cooldown` has the decay begin at {branch_iteration}; "
                    "write {decay_start} there, if the trainer can go on at its rate before"
                )
        return reasons

    def _placed(self, options: Mapping[str, Argument] | None, section: str) -> set[str]:
        """The names that options and the keys of the settings file use in a section."""
        keys = None if self.settings is None else getattr(self.settings, section)
        known = {**self._values(self.train_iters, Path()), **_branch_values(_EXAMPLE, "linear")}
        return names_of(_texts(options, keys), known, section)

    def resumed(self, command: tuple[str, ...], save_dir: Path) -> tuple[str, ...]:
        values = self._values(self.args.train_iters, save_dir)
        changed = change_options(command, _filled(self.resume, values))
        if self.settings is not None:
            again = str(save_dir / self.settings.name_to_resume)
            changed = [word.replace(values["settings"], again) for word in changed]
        return tuple(changed)

    def files(self, branch: Branch | None, save_dir: Path) -> dict[str, str]:
        if self.settings is None:
            return {}
        settings = self.settings
        if branch is None:
            values = self._of_trunk(save_dir)
            besides = settings.save_at if self.extra_saves else {}
        else:
            values = self._of_branch(branch, save_dir)
            besides = settings.baseline or {} if branch.is_baseline else settings.cooldown
        found = settings.files(lambda text: substitute(text, values), besides)
        return {str(save_dir / name): content for name, content in found.items()}

    def copies(self, save_dir: Path) -> dict[str, str]:
        file, key = self.saves.one_file, self.saves.iteration_name
        if file is None or key is None:
            return {}
        folder = self.checkpoint_folder(save_dir)
        return {"file": str(folder / file), "name": self.saves.names, "key": key}

    def _of_trunk(self, save_dir: Path) -> dict[str, str]:
        """Values of placeholders of a training."""
        saves = ",".join(map(str, self.extra_saves))
        return self._values(self.args.train_iters, save_dir) | {"save_at": saves}

    def _of_branch(self, branch: Branch, save_dir: Path) -> dict[str, str]:
        """Values of placeholders of a cooldown."""
        values = self._values(branch.target, save_dir)
        values |= _branch_values(branch, self.shapes.get(branch.shape, branch.shape))
        return values | {"min_lr": word(branch.min_lr)}

    def _values(self, target: int, save_dir: Path) -> dict[str, str]:
        """Values of placeholders, by name."""
        arguments = self.args.model_dump(exclude={"save_at"}, exclude_none=True)
        batches = self.batches(1)
        tokens = None if batches is None else batches.tokens(target)
        name = None if self.settings is None else self.settings.name
        return {
            **{name: word(value) for name, value in arguments.items()},
            "train_iters": str(target),
            "save_dir": str(save_dir),
            "source": self.source or "",
            "python": self.python or sys.executable,
            **({} if tokens is None else {"tokens": str(tokens)}),
            **({} if name is None else {"settings": str(save_dir / name)}),
        }

    def decay_shapes(self) -> Mapping[str, str]:
        return self.shapes

    def environment(self) -> dict[str, str]:
        return {"PYTHONUNBUFFERED": "1", **self.variables}

    @property
    def layout(self) -> Layout:
        return self.saves.layout

    def checkpoint_folder(self, save_dir: Path) -> Path:
        return save_dir / self.saves.folder

    @property
    def working_directory(self) -> str | None:
        return self.cwd

    @property
    def warning(self) -> LimitWarning:
        return LimitWarning(f"SIG{self.warn_signal}", self.warn_file)

    @property
    def save_now(self) -> LimitWarning | None:
        if self.save_signal is None and self.save_file is None:
            return None
        return LimitWarning(f"SIG{self.save_signal}", self.save_file)

    @property
    def peak_lr(self) -> float | None:
        return self.args.lr

    @property
    def warmup(self) -> int:
        return self.args.lr_warmup_iters

    def planned_rate(self, branch: Branch, iteration: int) -> float | None:
        if branch.is_baseline and iteration < self.warmup:
            return None  # the description does not say how its warm-up rises
        return super().planned_rate(branch, iteration)

    def clear_torn(self, save_dir: Path) -> list[str]:
        if not self.saves.trusts_torn:
            return []
        return self.layout.clear_torn(self.checkpoint_folder(save_dir))

    def progress(self, line: bytes) -> Progress | Unread | None:
        return ProgressPattern(self.log_line).read(line)

    def validation(self, line: bytes) -> Validation | None:
        written = self.validation_line
        return None if written is None else ValidationPattern(written).read(line)

    def read_start(self, line: bytes, earlier: int | None) -> int | None:
        del earlier
        found = None if self.start_line is None else ProgressPattern(self.start_line).read(line)
        return found.iteration if isinstance(found, Progress) else None


def _filled(options: Mapping[str, Argument], values: Mapping[str, str]) -> dict[str, Argument]:
    return {
        name: substitute(value, values) if isinstance(value, str) else value
        for name, value in options.items()
    }


def _texts(*options: Mapping[str, Argument] | None) -> list[str]:
    """Values that may have placeholders in them."""
    values = (value for each in options for value in (each or {}).values())
    return [value for value in values if isinstance(value, str)]


def _branch_values(branch: Branch, shape: str) -> dict[str, str]:
    return {
        "branch_iteration": str(branch.iteration),
        "decay_start": str(branch.falls_from),
        "decay_iterations": str(branch.decay_iterations),
        "decay_fraction": word(branch.decay_iterations / branch.target),
        "shape": shape,
    }
