"""Expressions over the values of a sweep point: only names, numbers and comparisons.

simpleeval walks the syntax tree, limited to the nodes and operators below:
no calls, no subscripts, no attributes of objects. A dotted name is looked up as one key.
"""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from simpleeval import InvalidExpression, SimpleEval

from autoexp.model import nearest

_LONGEST = 1000
_NAMES_SHOWN = 12


class ExpressionError(ValueError):
    """An expression that cannot be parsed, or has no value here; the message says why."""


class Expression(NamedTuple):
    """A valid expression."""

    text: str
    tree: ast.expr

    def value(self, values: Mapping[str, Any]) -> Any:
        """Evaluate it; raises ExpressionError, as for a name that is not in `values`."""
        try:
            return _Evaluator(values).eval(self.text, self.tree)
        except ExpressionError:
            raise
        except (
            *(InvalidExpression, ArithmeticError, TypeError, ValueError, KeyError, RecursionError),
        ) as error:
            raise ExpressionError(f"`{self.text}`: {error}") from error


def parse(text: str) -> Expression:
    """Parse an expression; raises ExpressionError for anything but a plain one."""
    if len(text) > _LONGEST:
        raise ExpressionError(f"an expression of {len(text)} characters; {_LONGEST} at most")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        _refuse_others(tree)
    except ExpressionError as error:
        raise ExpressionError(f"`{text}`: {error}") from error
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ExpressionError(f"`{text}` is not an expression: {reason}") from error
    return Expression(text, tree)


def _refuse_others(tree: ast.AST) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            _dotted(node)
        elif isinstance(node, ast.Constant):
            if not isinstance(node.value, bool | int | float | str | None):
                raise ExpressionError(f"{node.value!r} is not a number, text, true or false")
        elif not isinstance(node, _ALLOWED) and type(node) not in _OPERATORS:
            what = type(node).__name__
            raise ExpressionError(f"{what} is not allowed: only names, numbers and comparisons")


def _dotted(node: ast.expr) -> str:
    """The key that a name, or a name with dots, stands for."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    raise ExpressionError("a dot can only be part of a key, such as `backend.args.lr`")


class _Evaluator(SimpleEval):
    """simpleeval with a short table of nodes, and names that are keys."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(operators=_OPERATORS, functions={}, names={})
        self._values = values
        self.nodes = {
            ast.Name: self._look_up,
            ast.Attribute: self._look_up,
            ast.Constant: self._eval_constant,
            ast.UnaryOp: self._eval_unaryop,
            ast.BinOp: self._eval_binop,
            ast.BoolOp: self._eval_boolop,
            ast.Compare: self._eval_compare,
            ast.IfExp: self._eval_ifexp,
            ast.List: self._items,
            ast.Tuple: self._items,
        }

    def _look_up(self, node: ast.expr) -> Any:
        name = _dotted(node)
        if name in self._values:
            return self._values[name]
        hint = nearest(name, self._values)
        known = sorted(self._values, key=lambda key: (key.count("."), key))[:_NAMES_SHOWN]
        raise ExpressionError(
            f"`{self.expr}`: nothing is called `{name}`{hint}; there are: {', '.join(known)}, …"
        )

    def _items(self, node: ast.List | ast.Tuple) -> list[Any]:
        return [self._eval(item) for item in node.elts]


def _of_numbers(function: Callable[..., Any]) -> Callable[..., Any]:
    """Arithmetic for numbers alone: `"%999999999d" % 1` and `"a" * 10**9` fill the memory."""

    def checked(*values: Any) -> Any:
        for value in values:
            if not isinstance(value, int | float):
                raise TypeError(f"{value!r} is not a number")
        return function(*values)

    return checked


_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: _of_numbers(operator.add),
    ast.Sub: _of_numbers(operator.sub),
    ast.Mult: _of_numbers(operator.mul),
    ast.Div: _of_numbers(operator.truediv),
    ast.FloorDiv: _of_numbers(operator.floordiv),
    ast.Mod: _of_numbers(operator.mod),
    # In floating point: a power of integers can have more digits than the memory holds.
    ast.Pow: _of_numbers(math.pow),
    ast.USub: _of_numbers(operator.neg),
    ast.UAdd: _of_numbers(operator.pos),
    ast.Not: operator.not_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda item, items: operator.contains(items, item),
    ast.NotIn: lambda item, items: not operator.contains(items, item),
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}
_ALLOWED = (
    *(ast.Name, ast.Attribute, ast.UnaryOp, ast.BinOp, ast.BoolOp, ast.Compare, ast.IfExp),
    *(ast.List, ast.Tuple, ast.And, ast.Or, ast.Load),
)
