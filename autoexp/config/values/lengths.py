"""The training's length as an amount, `train_iters: 50B`: iterations, once the batch is known."""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from autoexp.backends.batches import Batches
from autoexp.backends.protocol import Backend
from autoexp.backends.registry import backend_class
from autoexp.config.quantities import Quantity, read_quantity
from autoexp.dotted import copied, flat, set_value
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
    counting = copied(values)
    set_value(counting, key, UNSAID)
    try:
        length = Quantity.model_validate(read_quantity(written))
        iterations = _iterations(length, counting, context)
    except ValidationError:
        return counting
    except ValueError as error:
        raise _refusal(key, str(error), written) from error
    set_value(counting, key, iterations)
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


class Counted(NamedTuple):
    """What a backend says of itself, whatever its length; None where it does not know."""

    parameters: int | None
    batches: Batches | None

    @property
    def tokens_per_iteration(self) -> int | None:
        """Tokens of an iteration; None where that changes."""
        found = self.batches
        if found is None or found.tokens_per_sample is None or found.grows:
            return None
        return found.size * found.tokens_per_sample


def counted(values: Mapping[str, Any], context: Any) -> Counted:
    """Count by the backend and the machine of an experiment; raises ValidationError."""
    backend = values.get("backend")
    kind = backend_class(backend.get("kind")) if isinstance(backend, Mapping) else None
    if kind is None or not isinstance(backend, Mapping):
        return Counted(None, None)
    known = copied(backend)
    set_value(known, kind.LENGTH, UNSAID)
    trainer = cast("Backend", kind.model_validate(known, context=context))
    machine = _MACHINE.validate_python(values.get("slurm"), context=context)
    return Counted(trainer.parameter_count(), trainer.batches(machine.workers))


def _iterations(length: Quantity, values: Mapping[str, Any], context: Any) -> int:
    if length.unit == "iterations":
        return length.amount
    found = length.iterations(counted(values, context).batches)
    if found < 1:
        raise ValueError(f"{length} are less than one iteration")
    return found


def _refusal(key: str, reason: str, written: str) -> ValidationError:
    # Braces in a reason would be names of its context.
    problem = PydanticCustomError("length", "{reason}", {"reason": reason})
    details = InitErrorDetails(type=problem, loc=tuple(key.split(".")), input=written)
    return ValidationError.from_exception_data("Experiment", [details])
