"""Helper values, and settings of the trainer that follow from others: safe arithmetic."""

import ast
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from autoexp.backends.registry import backend_class
from autoexp.config.expressions import ExpressionError, parse
from autoexp.config.sweep_expand import short_names
from autoexp.config.values.lengths import Counted, counted
from autoexp.dotted import copied, flat, set_value
from autoexp.errors import BadInput
from autoexp.model import COMPOSING, first_problem
from autoexp.scalars import plain

_BACKEND = "backend."
_LARGEST = 10**300
_COUNTED = ("parameters", "tokens_per_iteration")
"""Names for what the backend counts."""


def formulas_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """What is derived, by dotted key or by the name of a helper value."""
    written = values.get("derived")
    return flat(written) if isinstance(written, Mapping) else {}


def refuse_formula(key: str, formula: Any) -> None:
    """Raise ValueError for a key that cannot be derived, and for what is no plain expression."""
    if "." in key and not key.startswith(_BACKEND):
        raise ValueError(f"{key}: only keys of `backend.` and helper values can be derived")
    if "." not in key and (not key.isidentifier() or key in _COUNTED):
        raise ValueError(f"{key}: is no name for a helper value")
    if isinstance(formula, str):
        parse(formula)
    elif not isinstance(formula, int | float):
        raise ValueError(f"{key}: is neither a number nor an expression")


class Derivation(Mapping[str, Any]):
    """The names that expressions know, each worked out when it is asked for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._formulas = formulas_of(values)
        backend = flat({"backend": values.get("backend") or {}})
        own = {**_defaults(values), **backend}
        keys = dict.fromkeys([*own, *(key for key in self._formulas if key.startswith(_BACKEND))])
        self._short = {short: key for key, short in short_names(list(keys)).items()}
        self._known = {**flat(values), **own}
        self._found: dict[str, Any] = {}
        self._open: list[str] = []
        self._counts: Counted | None = None

    def __getitem__(self, name: str) -> Any:
        if name in self._formulas:
            return self._derived(name)
        if name in _COUNTED:
            return self._counted(name)
        key = self._short.get(name, name)
        return self._derived(key) if key in self._formulas else self._known[key]

    def __contains__(self, name: object) -> bool:
        return name in dict.fromkeys(self)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._short, *_COUNTED, *self._formulas, *self._known]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def results(self) -> dict[str, Any]:
        """All derived values; raises BadInput with the key of one that has none."""
        found: dict[str, Any] = {}
        for key, formula in self._formulas.items():
            try:
                refuse_formula(key, formula)
                self._refuse_shadow(key)
                found[key] = self[key]
            except ValueError as error:
                raise Underived(key, str(error).removeprefix(f"{key}: ")) from error
        if self._counts is not None:
            again = self._count(found)
            if again != self._counts:
                names = " and ".join(_COUNTED)
                raise Underived(next(iter(found)), f"{names} change with what follows from them")
        return found

    def _refuse_shadow(self, key: str) -> None:
        if "." not in key and key in self._short:
            raise ValueError(f"is a key of the backend too, `{self._short[key]}`: choose another")

    def _derived(self, key: str) -> Any:
        if key in self._found:
            return self._found[key]
        if key in self._open:
            circle = " -> ".join([*self._open[self._open.index(key) :], key])
            raise ExpressionError(f"follows from itself: {circle}")
        formula = self._formulas[key]
        self._open.append(key)
        try:
            found = parse(formula).value(self) if isinstance(formula, str) else formula
        finally:
            self._open.pop()
        # Squares of squares have more digits than the memory holds.
        if isinstance(found, int | float) and not abs(found) < _LARGEST:
            raise ExpressionError(f"`{formula}`: is no finite number below {_LARGEST:.0e}")
        self._found[key] = plain(found)
        return self._found[key]

    def _counted(self, name: str) -> Any:
        if self._counts is None:
            keys = [key for key in self._formulas if "." in key and not self._needs_counts(key)]
            self._counts = self._count({key: self._derived(key) for key in keys})
        found = getattr(self._counts, name)
        if found is None:
            raise ExpressionError(f"`{name}`: the backend does not know it")
        return found

    def _count(self, results: Mapping[str, Any]) -> Counted:
        try:
            return counted(with_results(self._values, results), COMPOSING)
        except ValidationError as error:
            problem = first_problem(error, "backend")
            raise ExpressionError(f"cannot be counted yet: {problem}") from error

    def _needs_counts(self, name: str, above: tuple[str, ...] = ()) -> bool:
        key = name if name in self._formulas else self._short.get(name, name)
        formula = self._formulas.get(key)
        if key in above or not isinstance(formula, str):
            return name in _COUNTED
        return any(self._needs_counts(each, (*above, key)) for each in _names_in(formula))


class Underived(BadInput):
    """A key that has no value, and why."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"derived.{key}: {reason}")
        self.key = key


def _names_in(formula: str) -> Iterator[str]:
    for node in ast.walk(parse(formula).tree):
        if isinstance(node, ast.Name | ast.Attribute):
            yield ast.unparse(node)


def _defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers, switches and texts that the trainer's arguments have where nobody sets them."""
    backend = values.get("backend")
    kind = backend_class(backend.get("kind")) if isinstance(backend, Mapping) else None
    arguments = None if kind is None else kind.model_fields.get("args")
    found = None if arguments is None else arguments.annotation
    if not isinstance(found, type) or not issubclass(found, BaseModel):
        return {}
    return dict(_defaults_of(found, f"{_BACKEND}args."))


def _defaults_of(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _defaults_of(inner, f"{prefix}{name}.")
        elif isinstance(field.default, bool | int | float | str):
            yield f"{prefix}{name}", field.default


def results_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """What is derived in the values of an experiment, worked out; raises BadInput."""
    return Derivation(values).results() if formulas_of(values) else {}


def with_results(values: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """The values with those keys of `backend` that were worked out."""
    changed = copied(values)
    for key, value in results.items():
        if "." in key:
            set_value(changed, key, value)
    return changed
