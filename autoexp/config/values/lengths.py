"""The training's length as an amount, `train_iters: 50B`: iterations, once the batch is known."""

from collections.abc import Mapping
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from autoexp.backends.base import BackendBase
from autoexp.backends.protocol import Backend
from autoexp.backends.registry import backend_class
from autoexp.config.quantities import Quantity, read_quantity
from autoexp.dotted import flat, set_value
from autoexp.resources.machines import Machine

UNSAID = 10**9
"""Iterations in place of a length that is not counted yet: more than any warm-up has."""
_MACHINE: TypeAdapter[Any] = TypeAdapter(Machine)
_KEPT = "length"


def with_iterations(values: dict[str, Any], context: Any) -> dict[str, Any]:
    """The values of an experiment in which the length is a number of iterations.

    What was written is kept as `length`. Raises ValidationError with the reason where the backend
    cannot count it. Values that are wrong elsewhere stay as they are: their model says so.
    """
    backend = values.get("backend")
    kind = backend_class(backend.get("kind")) if isinstance(backend, Mapping) else None
    if kind is None or not isinstance(backend, Mapping):
        return values
    key = f"backend.{kind.LENGTH}"
    written = flat({"backend": backend}).get(key)
    if not isinstance(written, str) or _is_number(written):
        return values
    counting = _copied(values)
    set_value(counting, key, UNSAID)
    try:
        length = Quantity.model_validate(read_quantity(written))
        counted = _counted(length, kind, counting, context)
    except ValidationError:
        return counting
    except ValueError as error:
        raise _refusal(key, str(error), written) from error
    set_value(counting, key, counted)
    return {**counting, _KEPT: length}


def as_written(values: dict[str, Any]) -> dict[str, Any]:
    """The inverse: values of a validated experiment, to be changed and validated again."""
    length, backend = values.pop(_KEPT, None), values["backend"]
    kind = backend_class(backend["kind"])
    if length is not None and kind is not None:
        set_value(values, f"backend.{kind.LENGTH}", str(Quantity.model_validate(length)))
    return values


def _is_number(text: str) -> bool:
    try:
        int(text)
    except ValueError:
        return False
    return True


def _counted(
    length: Quantity, kind: type[BackendBase], values: Mapping[str, Any], context: Any
) -> int:
    if length.unit == "iterations":
        return length.amount
    trainer = cast("Backend", kind.model_validate(values["backend"], context=context))
    machine = _MACHINE.validate_python(values.get("slurm"), context=context)
    batches = trainer.batches(machine.workers)
    found = length.iterations(batches)
    if found < 1:
        raise ValueError(f"{length} are less than one iteration")
    return found


def _refusal(key: str, reason: str, written: str) -> ValidationError:
    # Braces in a reason would be names of its context.
    problem = PydanticCustomError("length", "{reason}", {"reason": reason})
    details = InitErrorDetails(type=problem, loc=tuple(key.split(".")), input=written)
    return ValidationError.from_exception_data("Experiment", [details])


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings that can be changed."""
    return {k: _copied(v) if isinstance(v, Mapping) else v for k, v in values.items()}
