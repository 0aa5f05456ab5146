"""Arithmetic in placeholders, `{train_iters * 2}`: numbers and names, and nothing else."""

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping

_LOOKS_SO = re.compile(r"[a-z0-9_ .+*/()%-]*[a-z_][a-z0-9_ .+*/()%-]*")
_LONGEST = 200  # characters
_LARGEST = 10**18
_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
Number = int | float


def names_in(text: str) -> frozenset[str] | None:
    """The names in an expression; None for a text that is none, such as a piece of JSON."""
    tree = _parsed(text)
    if tree is None:
        return None
    return frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))


def result(text: str, values: Mapping[str, str]) -> str:
    """The value of an expression: whole numbers stay whole, `/` gives a fraction.

    Raises ValueError for a name without a number, and for what has no result.
    """
    tree = _parsed(text)
    if tree is None:
        raise ValueError(f"{{{text}}}: no expression of numbers and names")
    try:
        value = _value(tree, values)
    except (ZeroDivisionError, OverflowError):
        raise ValueError(f"{{{text}}}: has no result") from None
    if not math.isfinite(value) or abs(value) > _LARGEST:
        raise ValueError(f"{{{text}}}: {value:g} is too large")
    return repr(value)


def _parsed(text: str) -> ast.expr | None:
    if len(text) > _LONGEST or not _LOOKS_SO.fullmatch(text):
        return None
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return tree if _is_arithmetic(tree) else None


def _is_arithmetic(node: ast.expr) -> bool:
    match node:
        case ast.BinOp(left, op, right):
            return type(op) in _OPERATORS and _is_arithmetic(left) and _is_arithmetic(right)
        case ast.UnaryOp(ast.USub(), operand):
            return _is_arithmetic(operand)
        case ast.Constant(value):
            return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(node, ast.Name)


def _value(node: ast.expr, values: Mapping[str, str]) -> Number:
    match node:
        case ast.BinOp(left, op, right):
            return _OPERATORS[type(op)](_value(left, values), _value(right, values))
        case ast.UnaryOp(_, operand):
            return -_value(operand, values)
        case ast.Name(name):
            return number(values[name], name)
        case ast.Constant(value):
            assert isinstance(value, int | float)
            return value
    raise ValueError("no arithmetic")


def number(text: str, name: str) -> Number:
    """A value as a number; raises ValueError with its name."""
    try:
        return int(text) if re.fullmatch(r"-?[0-9]+", text) else float(text)
    except ValueError:
        raise ValueError(f"{{{name}}} is {text!r}, and no number") from None
