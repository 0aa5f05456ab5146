"""Compares the arguments that autoexp gives Megatron-LM with those of a checkout."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from autoexp.backends.megatron.arguments import MegatronArgs
from autoexp.backends.megatron.known_arguments import OURS, PASSED_THROUGH
from autoexp.backends.megatron.source_reader import Option, options_in
from autoexp.errors import BadInput
from autoexp.model import FrozenModel

_ALWAYS_GIVEN = (
    *("save", "load", "override_opt_param_scheduler", "exit_on_missing_checkpoint"),
    *("lr_decay_style", "lr_decay_iters", "lr_decay_samples", "lr_wsd_decay_style"),
    *("lr_wsd_decay_iters", "lr_wsd_decay_samples", "lr_warmup_samples", "train_samples"),
)
_FLAGS = {"override_opt_param_scheduler", "exit_on_missing_checkpoint"}
_SHAPES = {"minus_sqrt", "linear", "cosine"}


# Growing batches: which of them there is depends on the release, and a plan refuses the other.
_ONE_OR_THE_OTHER = {"rampup_batch_size", "step_batch_size_schedule"}


class Comparison(FrozenModel):
    """Differences between autoexp's model of Megatron-LM and a checkout."""

    read: int
    """Arguments that the checkout declares."""
    missing: tuple[str, ...]
    """Arguments that autoexp may give and that the checkout does not take."""
    changed: tuple[str, ...]
    """Arguments that the checkout takes in another form."""
    unknown: tuple[str, ...]
    """Arguments of the checkout that autoexp does not know; they pass through."""
    meanings: tuple[str, ...] = ()
    """Arguments that are taken, and mean something else than in other releases."""

    @property
    def fits(self) -> bool:
        return not self.missing and not self.changed


def compare(source: Path, script: str = "pretrain_gpt.py") -> Comparison:
    """Compare with a checkout by reading its source; raises BadInput where there is none."""
    options = options_in(source.absolute(), script)
    if "train_iters" not in options:
        raise BadInput(
            f"{source}: no Megatron-LM: its arguments were looked for in {script} and below "
            "megatron/, and there is no --train-iters"
        )
    fields = MegatronArgs.model_fields
    given = (*(name for name in fields if name not in _ONE_OR_THE_OTHER), *_ALWAYS_GIVEN)
    return Comparison(
        read=len(options),
        missing=tuple(name for name in given if name not in options),
        changed=tuple(
            f"{name}: {difference}"
            for name in given
            if name in options
            for difference in _differences(name, options[name])
        ),
        unknown=tuple(sorted(set(options) - set(given) - set(OURS) - PASSED_THROUGH)),
        meanings=tuple(_meanings(options)),
    )


def _meanings(options: Mapping[str, Option]) -> Iterator[str]:
    """What changed without a change of names.

    Source: num_microbatches_calculator.py, training_config.py of core_v0.15.3 to core_v0.19.0.
    """
    if options.keys() >= _ONE_OR_THE_OTHER:
        yield "rampup_batch_size: ignored, as since core_v0.18; use step_batch_size_schedule"
    interval = options.get("eval_interval")
    if interval is not None and interval.default is None:
        yield "eval_interval: no default, as since core_v0.16; autoexp always gives it"


def _differences(name: str, option: Option) -> Iterator[str]:
    field = MegatronArgs.model_fields.get(name)
    is_flag = name in _FLAGS if field is None else field.annotation is bool
    if is_flag != option.is_flag:
        yield "takes a value there" if is_flag else "is a flag there, without a value"
    values = _SHAPES if name == "lr_wsd_decay_style" else set(_literals(field and field.annotation))
    if option.choices is not None and (gone := values - option.choices):
        yield f"does not take {_listed(gone)}; it takes {_listed(option.choices)}"


def _listed(words: Iterable[str]) -> str:
    return ", ".join(sorted(words))


def _literals(annotation: Any) -> Iterator[str]:
    if get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    else:
        for inner in get_args(annotation):
            yield from _literals(inner)
