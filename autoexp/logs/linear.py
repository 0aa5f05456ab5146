"""Patterns that take linear time: each is rewritten for RE2, which never backtracks.

The answers are those of `re`: a pattern is written anew, byte by byte, from what the parser of `re`
made of it, so that no engine's own idea of `\\s` or `$` matters. RE2 knows no look-around. Such a
pattern runs with `re`, on so much of a line that it takes 20 million steps at most; one that could
take more on 256 bytes is refused. References to groups and atomic groups are refused.
"""

import re
from collections.abc import Iterator
from typing import Any

import re2

from autoexp.logs.patterns import bytes_of, compiled_by_re, constants, parse
from autoexp.logs.prefilter import NoCounterpart, byte_class

SEEN = 4096
"""Bytes of a line that a rule's pattern sees."""
_SEEN_BY_RE = (4096, 1024, 256, 64, 16)
_LEAST_SEEN = 256
_MOST_STEPS = 20_000_000
_LARGEST = 10_000  # instructions of a program: what counted repeats inside of others can come to
_MOST_WORK = 50_000_000  # bytes of a line times instructions of a program
_REPEATED = 1000  # RE2 counts no further

_compile: Any = re2.compile  # it has no types
_OPTIONS = re2.Options()
_OPTIONS.encoding = re2.Options.Encoding.LATIN1
_OPTIONS.log_errors = False

_PLACES = {
    constants.AT_BEGINNING: rb"\A",
    constants.AT_BEGINNING_STRING: rb"\A",
    constants.AT_END: rb"\z",
    constants.AT_END_STRING: rb"\z",
    constants.AT_BOUNDARY: rb"\b",
    constants.AT_NON_BOUNDARY: rb"\B",
}


def re2_compile(expression: bytes) -> Any:
    """Compile what is written for RE2, byte by byte; raises re2.error."""
    return _compile(expression, options=_OPTIONS)


class LinePattern:
    """A pattern, run on one line at a time (no newline in it); bounded in time on any line."""

    def __init__(self, pattern: str, seen: int = SEEN) -> None:
        """Raises ValueError for what is no regular expression."""
        raw = pattern.encode()
        plain = compiled_by_re(pattern)
        self._groups = tuple(plain.groupindex)
        self._by_re2 = _by_re2(raw)
        self._by_re = plain
        most = _seen_by_re(raw) if self._by_re2 is None else _MOST_WORK // self._by_re2.programsize
        self.seen = min(seen, most)
        """Bytes of a line that it sees."""

    @property
    def is_linear(self) -> bool:
        """True if RE2 runs it."""
        return self._by_re2 is not None

    def search(self, line: bytes) -> dict[str, bytes] | None:
        """Search a line: returns the named groups, empty if unset; None if there is no match."""
        shown = line[: self.seen]
        if self._by_re2 is None:
            found = self._by_re.search(shown)
            return None if found is None else {k: v or b"" for k, v in found.groupdict().items()}
        match = self._by_re2.search(shown)
        if match is None:
            return None
        return {
            name: match.group(number) or b"" for number, name in enumerate(self._groups, start=1)
        }


def refuse_slow(pattern: str) -> None:
    """Raise ValueError for a pattern without a bound on its time, or an invalid one."""
    compiled_by_re(pattern)
    raw = pattern.encode()
    if _by_re2(raw) is not None:
        return
    for operation in _operations(parse(raw)):
        if operation in (constants.GROUPREF, constants.GROUPREF_EXISTS):
            raise ValueError(
                f"{pattern!r}: references to groups can take exponential time; capture both, and "
                "compare them in a condition"
            )
        if str(operation) in ("ATOMIC_GROUP", "POSSESSIVE_REPEAT"):
            raise ValueError(f"{pattern!r}: atomic groups and possessive repeats are not supported")
    if _seen_by_re(raw) < _LEAST_SEEN:
        raise ValueError(
            f"{pattern!r} could take minutes on one line: RE2 does not take it (no look-around, "
            f"`\\Z` or repeat of more than {_REPEATED}), and for `re` it repeats too much. Leave "
            "the look-around out, or all but one of the repeats without a bound"
        )


def _by_re2(raw: bytes) -> Any:
    """The pattern for RE2; None for what it does not support, or not in bounded time."""
    parsed = parse(raw)
    if parsed.state.flags & re.LOCALE:
        return None
    named = {number: name for name, number in parsed.state.groupdict.items()}
    try:
        text = _write(parsed, bool(parsed.state.flags & re.IGNORECASE), named)
        made = re2_compile(text)
    except (NoCounterpart, re2.error):
        return None
    return made if made.programsize <= _LARGEST else None


def _write(operations: Any, ignore_case: bool, named: dict[int, str]) -> bytes:
    return b"".join(_one(each, argument, ignore_case, named) for each, argument in operations)


def _one(operation: Any, argument: Any, ignore_case: bool, named: dict[int, str]) -> bytes:
    if operation is constants.AT and argument in _PLACES:
        return _PLACES[argument]
    if operation is constants.SUBPATTERN:
        number, added, removed, body = argument
        ignored = (ignore_case or bool(added & re.IGNORECASE)) and not removed & re.IGNORECASE
        opened = b"(" if number in named else b"(?:"
        return opened + _write(body, ignored, named) + b")"
    if operation is constants.BRANCH:
        branches = [_write(branch, ignore_case, named) for branch in argument[1]]
        return b"(?:" + b"|".join(branches) + b")"
    if operation in (constants.MAX_REPEAT, constants.MIN_REPEAT):
        least, most, body = argument
        upper = b"" if most == constants.MAXREPEAT else b"%d" % most
        lazy = b"?" if operation is constants.MIN_REPEAT else b""
        return b"(?:%s){%d,%s}%s" % (_write(body, ignore_case, named), least, upper, lazy)
    if operation in (constants.LITERAL, constants.NOT_LITERAL, constants.IN, constants.ANY):
        return byte_class(_bytes_of(operation, argument, ignore_case), ignore_case=False)
    raise NoCounterpart


def _bytes_of(operation: Any, argument: Any, ignore_case: bool) -> set[int]:
    """The very bytes that one operation takes. A class is negated after its case is ignored."""
    if not ignore_case:
        return bytes_of(operation, argument)
    everything = set(range(256))
    if operation is constants.NOT_LITERAL:
        return everything - _both_cases({argument})
    if operation is constants.IN and argument[0][0] is constants.NEGATE:
        inner = set[int]().union(*(bytes_of(*each) for each in argument[1:]))
        return everything - _both_cases(inner)
    return _both_cases(bytes_of(operation, argument))


def _both_cases(taken: set[int]) -> set[int]:
    return taken | {ord(c) for n in taken if n < 128 for c in chr(n).swapcase()}


def _operations(parsed: Any) -> Iterator[Any]:
    """Yield every operation of a pattern, inner ones too."""
    for operation, argument in parsed:
        yield operation
        if operation is constants.BRANCH:
            for branch in argument[1]:
                yield from _operations(branch)
        elif isinstance(argument, tuple) and argument and hasattr(argument[-1], "data"):
            yield from _operations(argument[-1])


def _seen_by_re(raw: bytes) -> int:
    """Number of bytes of a line that `re` may see: the most on which its time is bounded."""
    parsed = parse(raw)
    fitting = (n for n in _SEEN_BY_RE if n * _ways(parsed, n) <= _MOST_STEPS)
    return next(fitting, _SEEN_BY_RE[-1])


def _ways(parsed: Any, seen: int) -> int:
    """Upper estimate of the ways in which a pattern can be tried from one position."""
    ways = 1
    for operation, argument in parsed:
        if operation in (constants.MAX_REPEAT, constants.MIN_REPEAT):
            least, most = min(argument[0], seen), min(argument[1], seen)
            inner = _ways(argument[2], seen)
            repeated = _MOST_STEPS if inner > 1 and most > 30 else inner**most
            ways *= (most - least + 1) * repeated
        elif operation is constants.BRANCH:
            ways *= sum(_ways(branch, seen) for branch in argument[1])
        elif isinstance(argument, tuple) and argument and hasattr(argument[-1], "data"):
            ways *= _ways(argument[-1], seen)
        ways = min(ways, _MOST_STEPS + 1)
    return ways
