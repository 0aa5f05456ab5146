"""Which rank a hung collective lacks, by the records of PyTorch's flight recorder."""

import json
import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest

from autoexp.operations.evidence import collector
from autoexp.operations.evidence.flight_recorder import Collectives, sentence
from autoexp.operations.evidence.stacks import NodeReport

RECORDS = Path(__file__).parents[2] / "data" / "flight_recorder"
"""Of PyTorch 2.13 with gloo: four ranks, of which rank 2 sleeps before the fourth all_reduce, and a
group `pipeline` of ranks 0 to 2."""


def real_record(rank: int) -> bytes:
    return (RECORDS / f"torch-2.13-gloo-rank{rank}").read_bytes()


def read(record: bytes, rank: int) -> list[Collectives]:
    return [Collectives.model_validate(each) for each in collector.collectives(record, rank)]


def waits(
    number: int, operation: str = "all_reduce", group: str = "0", **more: bool
) -> Collectives:
    return Collectives(group=group, last=number, waits=number, operation=operation, **more)


def done(last: int, group: str = "0") -> Collectives:
    return Collectives(group=group, last=last)


def test_the_rank_that_has_not_come_to_a_collective_is_named() -> None:
    found = {rank: read(real_record(rank), rank) for rank in range(4)}
    assert sentence(found) == (
        "rank 2 has not called all_reduce 4 of default_pg, 3 others wait in it"
    )
    assert [each.description for each in found[0]] == ["default_pg", "pipeline"]
    assert [each.description for each in found[3]] == ["default_pg"]


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ({}, None),
        ({0: [done(7)], 1: [done(7)]}, None),
        ({0: [waits(7)]}, "rank 0 is in all_reduce 7 of group 0"),
        (
            {0: [waits(7)], 1: [waits(7)]},
            "all 2 ranks with a record are in all_reduce 7 of group 0",
        ),
        (
            {0: [waits(7)], 1: [waits(7, "all_gather")], 2: [waits(7)]},
            "rank 1 is in all_gather where 2 others wait in all_reduce 7 of group 0",
        ),
        (
            {0: [waits(7)], 1: [waits(7, "all_gather")]},
            "rank 1 is in all_gather where 1 other waits in all_reduce 7 of group 0",
        ),
        (
            {0: [waits(7)], 1: [waits(7, "gather")], 2: [waits(7, "scatter")], 3: [waits(7)]},
            "rank 2 is in scatter where 2 others wait in all_reduce 7 of group 0",
        ),
        (
            {0: [waits(7, is_started=True)], 1: [waits(7)]},
            "rank 1 has called all_reduce 7 of group 0 and not started it, 1 other waits in it",
        ),
        # Rank 0 waits in one group for rank 1, which waits in another for rank 2.
        (
            {0: [waits(7)], 1: [done(6), waits(9, group="1")], 2: [done(8, group="1")]},
            "rank 2 has not called all_reduce 9 of group 1, 1 other waits in it",
        ),
        # Each waits for the other: neither is at fault alone.
        (
            {0: [waits(7), done(8, group="1")], 1: [done(6), waits(9, group="1")]},
            "rank 1 has not called all_reduce 7 of group 0, 1 other waits in it",
        ),
    ],
)
def test_what_is_said_of_ranks(records: dict[int, list[Collectives]], said: str | None) -> None:
    assert sentence(records) == said


def test_a_rank_that_has_called_nothing_in_a_group_of_its_own_is_behind_in_it() -> None:
    entry = {
        "process_group": ("5", "undefined"),
        "collective_seq_id": 1,
        "profiling_name": "nccl:_all_gather_base",
        "state": "started",
        "retired": False,
        "is_p2p": False,
    }
    config = {"5": {"name": "5", "desc": "undefined", "ranks": "[0, 1]"}}
    full = pickle.dumps({"pg_config": config, "entries": [dict(entry, record_id=9)]})
    assert [each.group for each in read(full, 0)] == ["5"]
    evicted = dict(entry, record_id=9, process_group=("6", "undefined"))
    beside = pickle.dumps({"pg_config": config, "entries": [evicted]})
    assert [each.group for each in read(beside, 1)] == ["6"]  # of "5" nothing is known
    peer = dict(entry, is_p2p=True, process_group=("6", "p2p"))
    first = pickle.dumps({"pg_config": config, "entries": [peer, entry]})
    second = pickle.dumps({"pg_config": config, "entries": []})
    assert sentence({0: read(first, 0), 1: read(second, 1), 2: read(second, 2)}) == (
        "rank 1 has not called _all_gather_base 1 of group 5, 1 other waits in it"
    )


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.path),)


def test_a_record_that_names_a_function_runs_nothing(tmp_path: Path) -> None:
    record = pickle.dumps({"pg_config": {}, "entries": [Payload(tmp_path / "ran")]})
    assert collector.collectives(record, 0) == []
    assert list(tmp_path.iterdir()) == []
    pickle.loads(record)
    assert (tmp_path / "ran").exists()  # what reads it without care does


def test_a_record_that_is_cut_short_or_garbled_tells_nothing_or_something_and_never_raises() -> (
    None
):
    record, draw = real_record(0), random.Random(7)
    cut = [collector.collectives(record[:end], 0) for end in range(len(record))]
    assert cut == [[]] * len(record)
    for _ in range(500):
        garbled = bytearray(record)
        for _ in range(draw.randint(1, 5)):
            garbled[draw.randrange(len(garbled))] = draw.randrange(256)
        read_back(collector.collectives(bytes(garbled), 0))


@pytest.mark.parametrize("number", [10**40, -(10**5000), True], ids=["large", "low", "true"])
@pytest.mark.parametrize("odd", ["\ud800", "\x1b[31m", "\n" * 1000])
def test_odd_names_of_a_record_cost_no_report(odd: str, number: int) -> None:
    entry = {
        "process_group": (odd, odd),
        "collective_seq_id": number,
        "profiling_name": odd,
        "state": odd,
        "retired": None,
        "is_p2p": 0,
    }
    (each,) = read_back(collector.collectives(pickle.dumps({"entries": [entry]}), 0))
    assert (
        each.group == each.operation == "".join("?" if c < " " or c > "~" else c for c in odd)[:80]
    )


def test_a_name_that_is_no_text_costs_no_report() -> None:
    entry = {
        "process_group": (("y" * 1000,), ["y" * 1000]),
        "collective_seq_id": 1,
        "profiling_name": "gloo:gather",
        "state": "started",
        "retired": False,
        "is_p2p": False,
    }
    (each,) = read_back(collector.collectives(pickle.dumps({"entries": [entry]}), 0))
    assert len(each.group) == len(each.description) == 80


def read_back(found: list[dict[str, Any]]) -> tuple[Collectives, ...]:
    process = {"pid": 1, "how": "kernel", "collectives": found}
    report = NodeReport.model_validate_json(json.dumps({"node": "n1", "processes": [process]}))
    return report.processes[0].collectives
