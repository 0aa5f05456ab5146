"""Patterns of log rules: which are taken, and what a line that matches one must have in it.

Patterns that could take exponential time are refused, and the others see the first 1 to 4 KiB of a
line: the more repeats without a bound a pattern has, the less. At worst, on a line made for it,
`a.*b.*c.*d` takes 1.2 s (measured; each doubling of the line would take sixteen times that).
"""

import re
import warnings
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

with warnings.catch_warnings():
    # The parser of `re`, under the name that Python 3.11 to 3.14 all have.
    warnings.simplefilter("ignore", DeprecationWarning)
    import sre_constants
    import sre_parse

constants: Any = sre_constants

SEEN = (4096, 4096, 2048, 1024)
"""Bytes of a line that a pattern sees, by how many repeats without a bound it has, as `.*`."""
_LONG = 64  # a repeat of more than this is as good as unbounded


class Wanted(NamedTuple):
    """A rule's pattern."""

    name: str
    pattern: str
    is_regex: bool


def parse(raw: bytes) -> Any:
    """A pattern as the parser of `re` sees it."""
    parse: Any = sre_parse.parse  # it takes bytes too, which its stub does not know
    return parse(raw)


def groups_of(pattern: str) -> tuple[str, ...]:
    """The names of a pattern's groups; raises ValueError when it is no regular expression."""
    try:
        return tuple(re.compile(pattern.encode()).groupindex)
    except (re.error, OverflowError) as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error


def refuse_slow(pattern: str) -> None:
    """Raise ValueError for a pattern whose time could grow out of hand, or that is none at all."""
    groups_of(pattern)
    if (repeats := unbounded(pattern)) >= len(SEEN):
        raise ValueError(
            f"{pattern!r} has {repeats} repeats without a bound, one that it begins with counted "
            f"twice; {len(SEEN) - 1} at most, or a line could take minutes. Bound some: `.{{1,60}}`"
        )


def refuse_escapes(pattern: str) -> None:
    """Raise ValueError for a pattern that asks for what is taken out of lines before."""
    if any(written in pattern for written in ("\x1b", r"\x1b", r"\x1B", r"\033")):
        raise ValueError(
            f"{pattern!r} asks for a terminal escape: lines are read without colours and the like"
        )


def unbounded(pattern: str) -> int:
    """How many repeats without a bound a pattern has."""
    parsed = parse(pattern.encode())
    speed = _Speed()
    # Where it begins with one, every place in the line is tried as its beginning.
    return speed.measure(parsed) + (speed.measure(parsed[:1]) if len(parsed) else 0)


class _Speed:
    """Counts unbounded repeats; a repeat inside a repeat can take exponential time."""

    def measure(self, parsed: Any, *, inside: bool = False) -> int:
        count = 0
        for (operation, argument), following in pairwise([*_flat(parsed), (None, None)]):
            if operation in (constants.MAX_REPEAT, constants.MIN_REPEAT):
                counted = self._repeat(argument, inside=inside)
                count += 0 if _ends_by_itself(argument, following) else counted
            elif operation is constants.BRANCH:
                if inside:
                    raise ValueError("alternatives inside a repeat can take exponential time")
                count += max(self.measure(branch) for branch in argument[1])
            elif operation in (constants.ASSERT, constants.ASSERT_NOT):
                count += self.measure(argument[1], inside=inside)
            elif operation in (constants.GROUPREF, constants.GROUPREF_EXISTS):
                raise ValueError("references to groups can take exponential time")
            elif str(operation) in ("ATOMIC_GROUP", "POSSESSIVE_REPEAT"):
                raise ValueError("atomic groups and possessive repeats are not taken here")
        return count

    def _repeat(self, argument: Any, *, inside: bool) -> int:
        least, most, body = argument
        varies, long = least != most, most > _LONG
        if inside and (varies or long):
            raise ValueError("a repeat inside a repeat can take exponential time")
        return int(varies and long) + self.measure(body, inside=inside or most > 1)


def _flat(parsed: Any) -> Iterator[tuple[Any, Any]]:
    """The operations in their order, those inside of groups too."""
    for operation, argument in parsed:
        if operation is constants.SUBPATTERN:
            yield from _flat(argument[-1])
        else:
            yield operation, argument


def _ends_by_itself(repeat: Any, following: tuple[Any, Any]) -> bool:
    """Whether a repeat stops at what follows, as `[0-9]+` before a colon: there is one way only."""
    body = list(_flat(repeat[2]))
    if len(body) != 1 or following[0] is not constants.LITERAL:
        return False
    return following[1] not in bytes_of(*body[0])


_CLASSES = {
    constants.CATEGORY_DIGIT: rb"\d",
    constants.CATEGORY_NOT_DIGIT: rb"\D",
    constants.CATEGORY_SPACE: rb"\s",
    constants.CATEGORY_NOT_SPACE: rb"\S",
    constants.CATEGORY_WORD: rb"\w",
    constants.CATEGORY_NOT_WORD: rb"\W",
}


def bytes_of(operation: Any, argument: Any) -> set[int]:
    """The bytes that one operation takes; all of them where that is not plain to see."""
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
