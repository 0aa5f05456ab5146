"""Says which ranks a hung collective lacks, by the records of PyTorch's flight recorder: pure.

The rules are those of PyTorch's own analysis of such records (`torch.distributed.flight_recorder`):
within a process group collectives are numbered alike on all of its ranks, so a rank whose last one
has a lower number than the one that others wait in has not come to it.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from autoexp.operations.evidence import naming

_NAMELESS = {"", "undefined"}


class Collectives(BaseModel):
    """What a rank has done in one process group, as `collector.py` writes it."""

    model_config = ConfigDict(frozen=True)

    group: Annotated[str, Field(max_length=100)]
    description: Annotated[str, Field(max_length=100)] = ""
    last: int = 0
    """Number of the last collective that the rank has called; 0: none is known."""
    waits: int | None = None
    """Number of the first one that has not ended."""
    operation: Annotated[str, Field(max_length=100)] = ""
    """The name of that one, such as `all_reduce`."""
    is_started: bool = False
    """True if it has started on the device."""


class _Hang(NamedTuple):
    """What the ranks of a process group wait in, and those of them that do not."""

    group: str
    number: int
    waiting: dict[int, Collectives]
    lacking: dict[int, Collectives]
    guilty: list[int]
    """Those that lack and wait in no other group either."""

    @property
    def operations(self) -> Counter[str]:
        return Counter(each.operation for each in self.waiting.values())

    @property
    def queued(self) -> list[int]:
        """Ranks whose device has not started it, where that of others has."""
        started = {rank for rank, each in self.waiting.items() if each.is_started}
        return sorted(self.waiting.keys() - started) if started else []

    @property
    def weight(self) -> tuple[bool, bool, bool, bool, int]:
        """How much it tells: more first."""
        is_mixed = len(self.operations) > 1
        return (
            *(not self.guilty, not self.lacking, not is_mixed, not self.queued),
            -len(self.waiting),
        )


def sentence(records: Mapping[int, Sequence[Collectives]]) -> str | None:
    """Say which ranks a collective lacks, from what is known of each rank; None: nothing waits.

    Of several process groups it is the one that tells most: one that lacks a rank which waits for
    nobody, before one whose absent ranks wait in another group.
    """
    groups: dict[str, dict[int, Collectives]] = defaultdict(dict)
    busy = set[int]()
    for rank, found in records.items():
        for each in found:
            groups[each.group][rank] = each
            if each.waits is not None:
                busy.add(rank)
    hangs = [hang for members in groups.values() if (hang := _hang(members, busy))]
    return _told(min(hangs, key=lambda hang: hang.weight)) if hangs else None


def _hang(members: Mapping[int, Collectives], busy: Set[int]) -> _Hang | None:
    """What the ranks of one group wait in; `busy`: those that wait in any."""
    numbers = [each.waits for each in members.values() if each.waits is not None]
    if not numbers:
        return None
    number = min(numbers)
    waiting = {rank: each for rank, each in members.items() if each.waits == number}
    lacking = {rank: each for rank, each in members.items() if each.last < number}
    guilty = sorted(lacking.keys() - busy)
    names = [f"group {each.group}" for each in members.values()]
    names = [e.description for e in members.values() if e.description not in _NAMELESS] or names
    return _Hang(names[0], number, waiting, lacking, guilty)


def _told(hang: _Hang) -> str:
    (operation, count), *others = hang.operations.most_common()
    what = f"{operation} {hang.number} of {hang.group}"
    if hang.lacking:
        absent = hang.guilty or sorted(hang.lacking)
        have = "has" if len(absent) == 1 else "have"
        return f"{naming.ranks(absent)} {have} not called {what}, {_wait(len(hang.waiting))} in it"
    if others:
        other, _ = others[-1]
        odd = [rank for rank, each in hang.waiting.items() if each.operation == other]
        are = "is" if len(odd) == 1 else "are"
        return f"{naming.ranks(odd)} {are} in {other} where {_wait(count)} in {what}"
    if hang.queued:
        have = "has" if len(hang.queued) == 1 else "have"
        waiting = _wait(len(hang.waiting) - len(hang.queued))
        return (
            f"{naming.ranks(hang.queued)} {have} called {what} and not started it, {waiting} in it"
        )
    if len(hang.waiting) == 1:
        return f"{naming.ranks(hang.waiting)} is in {what}"
    return f"all {len(hang.waiting)} ranks with a record are in {what}"


def _wait(count: int) -> str:
    return f"{naming.others(count)} wait{'s' if count == 1 else ''}"
