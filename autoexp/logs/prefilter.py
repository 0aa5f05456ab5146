"""A pattern rewritten for another engine: found in every line that `re` finds the pattern in.

It may be found in more lines, never in fewer. It is written anew from what the parser of `re` made
of the pattern, byte by byte, so that no engine's own idea of `\\s` or `{,3}` matters; what has no
counterpart is left out, as a word's boundary; and a repeat at the end is as short as it can be, so
that a line ends a match once.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from autoexp.logs.patterns import Wanted, bytes_of, collect_literals, constants, parse

_NEWLINE = ord("\n")
_REPEATS = (constants.MAX_REPEAT, constants.MIN_REPEAT)
_ASSERTIONS = (constants.AT, constants.ASSERT, constants.ASSERT_NOT)


class NoCounterpart(Exception):
    """Another engine has no counterpart for a part of a pattern."""


def widened(wanted: Wanted) -> bytes | None:
    """The pattern for another engine; None when every line has to be checked."""
    raw = wanted.pattern.encode()
    if not wanted.is_regex:
        return _literal(raw) if raw else None
    parsed = parse(raw)
    if parsed.state.flags & re.LOCALE:
        return None
    ignore_case = bool(parsed.state.flags & re.IGNORECASE)
    operations = _shortest_end(list(parsed))
    start = b"^" if operations and _is_beginning(operations[0]) else b""
    try:
        written = _write(operations, ignore_case=ignore_case)
    except NoCounterpart:
        return None
    return start + written if written else None


def anchor(wanted: Wanted) -> bytes | None:
    """The longest text that is in every line that matches; None when there is none."""
    raw = wanted.pattern.encode()
    if not wanted.is_regex:
        return raw or None
    parsed = parse(raw)
    literals: list[bytes] = []
    if not parsed.state.flags & re.IGNORECASE:
        collect_literals(parsed, literals)
    return max(literals, key=len, default=None)


def _is_beginning(operation: tuple[Any, Any]) -> bool:
    return bool(operation[0] is constants.AT and operation[1] is constants.AT_BEGINNING)


def _shortest_end(operations: Sequence[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Drop the optional end of a match."""
    kept = list(operations)
    while kept:
        operation, argument = kept.pop()
        if operation in _REPEATS and argument[0] != argument[1]:
            least, _, body = argument
            if least:
                return [*kept, (operation, (least, least, body))]
        elif operation is constants.SUBPATTERN:
            body = _shortest_end(list(argument[-1]))
            if body:
                return [*kept, (operation, (*argument[:-1], body))]
        elif operation not in _ASSERTIONS or not kept:
            return [*kept, (operation, argument)]
    return kept


def _write(operations: Any, *, ignore_case: bool) -> bytes:
    return b"".join(_one(*each, ignore_case=ignore_case) for each in operations)


def _one(operation: Any, argument: Any, *, ignore_case: bool) -> bytes:
    if operation in _ASSERTIONS:
        return b""
    if operation is constants.SUBPATTERN:
        _, added, removed, body = argument
        ignored = (ignore_case or bool(added & re.IGNORECASE)) and not removed & re.IGNORECASE
        return b"(?:" + _write(body, ignore_case=ignored) + b")"
    if operation is constants.BRANCH:
        branches = [_write(branch, ignore_case=ignore_case) for branch in argument[1]]
        return b"(?:" + b"|".join(branches) + b")"
    if operation in _REPEATS:
        least, most, body = argument
        upper = b"" if most == constants.MAXREPEAT else b"%d" % most
        inner = _write(body, ignore_case=ignore_case)
        if least == most == 1:
            return inner
        return b"(?:%s){%d,%s}" % (inner, least, upper) if inner else b""
    if operation in (constants.LITERAL, constants.NOT_LITERAL, constants.IN, constants.ANY):
        return byte_class(bytes_of(operation, argument), ignore_case=ignore_case)
    raise NoCounterpart


def byte_class(taken: set[int], *, ignore_case: bool) -> bytes:
    """One byte out of some. A line has no newline in it."""
    if ignore_case:
        taken = taken | {ord(c) for n in taken if n < 128 for c in chr(n).swapcase()}
    taken = taken - {_NEWLINE}
    if not taken:
        raise NoCounterpart
    if len(taken) == 1:
        return _literal(bytes(taken))
    ranges = (b"%s-%s" % (_literal(bytes([a])), _literal(bytes([b]))) for a, b in _ranges(taken))
    return b"[" + b"".join(ranges) + b"]"


def _ranges(numbers: set[int]) -> Iterator[tuple[int, int]]:
    first = last = min(numbers)
    for number in sorted(numbers)[1:]:
        if number > last + 1:
            yield first, last
            first = number
        last = number
    yield first, last


def _literal(text: bytes) -> bytes:
    return b"".join(b"\\x%02x" % byte for byte in text)
