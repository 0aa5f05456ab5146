"""Says in a sentence where the ranks of a hung job stand, from what its nodes wrote: pure."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from autoexp.operations.evidence import naming
from autoexp.operations.evidence.flight_recorder import Collectives

_COLLECTIVE = re.compile(
    r"_*(?:monitored_)?(all_?reduce|all_?gather|reduce_?scatter|broadcast|barrier|all_?to_?all|gather"
    r"|scatter|reduce|batch_isend_irecv|isend|irecv|send|recv)(?:_\w+)?(?:_impl)?"
)
# As py-spy 0.4 prints them: `Thread 7 (idle+gil): "MainThread"`, without a name where the program
# has not loaded `threading`; `Condition.wait (threading.py:327)`, with the class since Python 3.11.
_SPY_THREAD = re.compile(r'Thread (?P<id>\w+) \([^)]*\)(?:: "(?P<name>[^"]*)")?')
_SPY_FRAME = re.compile(r"^\s+(?P<function>\S[^(]*?) \((?P<file>[^()]+?)(?::(?P<line>\d+))?\)\s*$")
_DUMP_THREAD = re.compile(r"(?P<current>Current thread|Thread) 0x[0-9a-f]+")
_DUMP_FRAME = re.compile(r'File "(?P<file>[^"]*)", line (?P<line>\d+) in (?P<function>\S+)')
# What waits on somebody's behalf: the frame that called it says for what. py-spy has bare names.
_WAITING = re.compile(
    r"(?:.*/python[0-9.]+/)?(?:threading|queue|selectors|socket|ssl|subprocess|multiprocessing/\w+"
    r"|concurrent/futures/\w+|asyncio/\w+)\.py"
)
_PATTERNS = {"py-spy": (_SPY_THREAD, _SPY_FRAME), "faulthandler": (_DUMP_THREAD, _DUMP_FRAME)}
_LONGEST = 80


class Process(BaseModel):
    """What a node wrote of one process."""

    model_config = ConfigDict(frozen=True)

    pid: int
    rank: int | None = None
    world: int | None = None
    command: str = ""
    state: str = ""
    wchan: str = ""
    how: str
    """py-spy, faulthandler, or the kernel's words alone."""
    stack: str = ""
    collectives: tuple[Collectives, ...] = ()


class NodeReport(BaseModel):
    """`NODE.json`, as `collector.py` writes it."""

    model_config = ConfigDict(frozen=True)

    node: Annotated[str, Field(max_length=255)]
    processes: tuple[Process, ...] = ()
    files: tuple[str, ...] = ()
    is_whole: bool = False


class Place(NamedTuple):
    """Where a rank stands: a function, and where that is written unless it is a collective."""

    function: str
    where: str = ""
    is_collective: bool = False

    def __str__(self) -> str:
        return f"{self.function} ({self.where})" if self.where else self.function


class Frame(NamedTuple):
    """A frame of a stack, the innermost first."""

    function: str
    where: str
    is_of_a_wait: bool = False
    """True for one of Python's own library that waits on somebody's behalf."""


def main_thread(process: Process) -> list[Frame]:
    """The stack of a process's main thread, the innermost frame first; empty where unknown."""
    patterns = _PATTERNS.get(process.how)
    if patterns is None:
        return []
    thread, frame = patterns
    threads: list[tuple[bool, bool, list[Frame]]] = []
    for line in process.stack.splitlines():
        if begins := thread.search(line):
            named = begins.groupdict()
            is_main = named.get("name") == "MainThread" or named.get("current") == "Current thread"
            # Linux gives the first thread the process's own number.
            threads.append((is_main, named.get("id") == str(process.pid), []))
        elif threads and (found := frame.search(line)):
            place = found["file"].rpartition("/")[2]
            where = f"{place}:{found['line']}" if found["line"] else place
            waits = _WAITING.fullmatch(found["file"]) is not None
            frames = threads[-1][-1]
            frames.append(Frame(found["function"][:_LONGEST], where[:_LONGEST], waits))
    known = [each for each in threads if each[-1]]
    chosen = [each for each in known if each[0]] or [each for each in known if each[1]]
    return next((frames for *_, frames in chosen or known[-1:]), [])


def place_of(process: Process) -> Place | None:
    """Where a process stands: the collective that it is in, else its own innermost frame.

    Without a stack what it waits for in the kernel, where that is no mere sleep.
    """
    frames = main_thread(process)
    frames = [frame for frame in frames if not frame.is_of_a_wait] or frames
    for frame in frames:
        if found := _COLLECTIVE.fullmatch(frame.function.rpartition(".")[2]):
            return Place(found[0].lstrip("_"), is_collective=True)
    if frames:
        return Place(frames[0].function, frames[0].where)
    if process.how == "kernel" and process.state == "D":
        return Place(process.wchan[:_LONGEST] or "the kernel", "uninterruptible")
    return None


class Standing(NamedTuple):
    """A rank on its node, and where it stands."""

    rank: int
    node: str
    place: Place


def sentence(reports: Sequence[NodeReport]) -> str | None:
    """Where the ranks stand, in a sentence; None where no stack tells.

    The fewest are named, since it is them that the others wait for.
    """
    standing = [
        Standing(process.rank, report.node, place)
        for report in reports
        for process in report.processes
        if process.rank is not None and (place := place_of(process)) is not None
    ]
    if not standing:
        return None
    groups: dict[Place, list[Standing]] = defaultdict(list)
    for each in standing:
        groups[each.place].append(each)
    ordered = sorted(groups.items(), key=lambda item: (len(item[1]), not item[0].is_collective))
    absent = _absent(reports)
    if len(ordered) == 1:
        place, ranks = ordered[0]
        return f"{_all_of(ranks)} in {place}{_and_absent(absent)}"
    # Of as many the ones outside of a collective are what the others wait for.
    odd = min(ordered, key=lambda item: (len(item[1]), item[0].is_collective))
    others = [item for item in reversed(ordered) if item is not odd]
    waiting = ", ".join(
        f"{naming.others(len(ranks))} {_verb(ranks, place)}" for place, ranks in others[:2]
    )
    if rest := sum(len(ranks) for _, ranks in others[2:]):
        waiting += f", {rest} elsewhere"
    return f"{_named(odd[1])} {_stands(odd[1])} in {odd[0]}, {waiting}{_and_absent(absent)}"


def _absent(reports: Iterable[NodeReport]) -> list[int]:
    """Ranks of which no node has a process."""
    found = [process for report in reports for process in report.processes]
    ranks = {process.rank for process in found}
    world = max((process.world or 0 for process in found), default=0)
    return [rank for rank in range(min(world, 100_000)) if rank not in ranks]


def _and_absent(ranks: Sequence[int]) -> str:
    if not ranks:
        return ""
    return f"; of {naming.ranks(ranks)} there is no process"


def _named(standing: Sequence[Standing]) -> str:
    nodes = sorted({each.node for each in standing})
    where = nodes[0] if len(nodes) == 1 else f"{len(nodes)} nodes"
    return f"{naming.ranks(each.rank for each in standing)} on {where}"


def _stands(standing: Sequence[Standing]) -> str:
    return "stands" if len(standing) == 1 else "stand"


def _all_of(standing: Sequence[Standing]) -> str:
    if len(standing) == 1:
        return f"{_named(standing)} stands"
    return f"all {len(standing)} ranks stand"


def _verb(standing: Sequence[Standing], place: Place) -> str:
    plural = len(standing) > 1
    if place.is_collective:
        return f"wait{'' if plural else 's'} in {place}"
    return f"stand{'' if plural else 's'} in {place}"
