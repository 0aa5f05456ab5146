"""Patterns of log rules, as parsed by `re`, and the text that every match contains."""

import re
import warnings
from typing import Any, NamedTuple

with warnings.catch_warnings():
    # The parser of `re`, under the name that Python 3.11 to 3.14 all have.
    warnings.simplefilter("ignore", DeprecationWarning)
    import sre_constants
    import sre_parse

constants: Any = sre_constants


class Wanted(NamedTuple):
    """A rule's pattern."""

    name: str
    pattern: str
    is_regex: bool


def parse(raw: bytes) -> Any:
    """Parse a pattern with the parser of `re`."""
    parse: Any = sre_parse.parse  # it takes bytes too, which its stub does not know
    return parse(raw)


def compiled_by_re(pattern: str) -> re.Pattern[bytes]:
    """Compile a pattern with `re`; raises ValueError when it is not a regular expression."""
    try:
        return re.compile(pattern.encode())
    except (re.error, OverflowError, RecursionError, UnicodeError) as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error


def groups_of(pattern: str) -> tuple[str, ...]:
    """The names of a pattern's groups; raises ValueError when it is not a regular expression."""
    return tuple(compiled_by_re(pattern).groupindex)


def refuse_escapes(pattern: str) -> None:
    """Raise ValueError for a pattern that looks for terminal escapes, which are removed before."""
    if any(written in pattern for written in ("\x1b", r"\x1b", r"\x1B", r"\033")):
        raise ValueError(
            f"{pattern!r} contains a terminal escape: these are removed from lines before matching"
        )


_CLASSES = {
    constants.CATEGORY_DIGIT: rb"\d",
    constants.CATEGORY_NOT_DIGIT: rb"\D",
    constants.CATEGORY_SPACE: rb"\s",
    constants.CATEGORY_NOT_SPACE: rb"\S",
    constants.CATEGORY_WORD: rb"\w",
    constants.CATEGORY_NOT_WORD: rb"\W",
}


def bytes_of(operation: Any, argument: Any) -> set[int]:
    """The bytes that one operation matches; all of them where that is not obvious."""
    everything = set(range(256))
    if operation is constants.LITERAL:
        return {argument}
    if operation is constants.NOT_LITERAL:
        return everything - {argument}
    if operation is constants.RANGE:
        return set(range(argument[0], argument[1] + 1))
    if operation is constants.CATEGORY and argument in _CLASSES:
        return set(b"".join(re.findall(_CLASSES[argument], bytes(range(256)))))
    if operation is constants.IN:
        negated = argument[0][0] is constants.NEGATE
        found = set[int]().union(*(bytes_of(*each) for each in argument[negated:]))
        return everything - found if negated else found
    return everything


def collect_literals(parsed: Any, found: list[bytes]) -> None:
    """Runs of characters that every match contains, the longest of each sequence."""
    run = bytearray()
    for operation, argument in parsed:
        if operation is constants.LITERAL:
            run.append(argument)
            continue
        _keep(run, found)
        if operation is constants.SUBPATTERN:
            if not argument[1] & re.IGNORECASE:
                collect_literals(argument[-1], found)
        elif operation in (constants.MAX_REPEAT, constants.MIN_REPEAT) and argument[0] > 0:
            collect_literals(argument[2], found)
    _keep(run, found)


def _keep(run: bytearray, found: list[bytes]) -> None:
    if len(run) > 1:
        found.append(bytes(run))
    run.clear()
