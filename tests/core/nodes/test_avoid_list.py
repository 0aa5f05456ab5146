"""The shared list of nodes: many writers lose nothing, and nobody excludes half a cluster."""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from autoexp.errors import SessionError
from autoexp.model import now
from autoexp.nodes.avoid_list import Avoided, AvoidList, within_cap
from autoexp.nodes.policy import NodePolicy
from tests.killing import KilledAt


def entry(node: str, *, id: str = "", hours: float = 1, source: str = "check") -> Avoided:
    until = now() + timedelta(hours=hours)
    return Avoided(id=id or node, node=node, until=until, why="ill", source=source)  # type: ignore[arg-type]


def names(path: Path) -> list[str]:
    return [found.node for found in AvoidList(path).current(now())]


def test_an_entry_is_added_once_and_ends_when_it_expires_or_is_removed(tmp_path: Path) -> None:
    listed = AvoidList(tmp_path / "new" / "nodes.jsonl")
    assert listed.current(now()) == []
    assert len(listed.add([entry("n1"), entry("n2"), entry("old", hours=-1)])) == 3
    assert listed.add([entry("n1")]) == []
    assert names(listed.path) == ["n1", "n2"]
    assert listed.remove(["n1", "n1", "unknown"]) == ["n1"]
    assert names(listed.path) == ["n2"]
    # What was found of it before stays ended; what is found later counts.
    assert listed.add([entry("n1")]) == []
    listed.add([entry("n1", id="later")])
    assert names(listed.path) == ["n2", "n1"]


def test_lines_that_are_torn_foreign_or_no_names_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "nodes.jsonl"
    good = entry("n1").model_dump_json()
    bad = entry("n2").model_dump_json().replace('"n2"', '"--wrap=x"', 2)
    path.write_text(f'{good}\n[1]\n{bad}\n\x00\n{{"removed": 7}}\n{good[:40]}')
    listed = AvoidList(path)
    assert names(path) == ["n1"]
    listed.add([entry("n3")])
    assert names(path) == ["n1", "n3"]
    with pytest.raises(SessionError):
        listed.add([entry("n4; rm")])
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match="regular"):
        listed.current(now())


WRITER = """
import sys
from datetime import timedelta
from pathlib import Path
from autoexp.model import now
from autoexp.nodes.avoid_list import Avoided, AvoidList
path, who = Path(sys.argv[1]), sys.argv[2]
for number in range(40):
    name = f"{who}-{number}"
    until = now() + timedelta(hours=1)
    one = Avoided(id=name, node=name, until=until, why="x" * 400, source="check")
    AvoidList(path).add([one])
    if number % 2:
        AvoidList(path).remove([name])
"""


def test_three_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "nodes.jsonl"
    words = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*words, who]) for who in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    expected = {f"{who}-{number}" for who in "abc" for number in range(0, 40, 2)}
    assert sorted(names(path)) == sorted(expected)
    assert len(path.read_text().splitlines()) == 3 * (40 + 20)


def test_a_kill_at_any_step_leaves_each_entry_once(tmp_path: Path, killed_at: KilledAt) -> None:
    for n in range(1, 20):
        path = tmp_path / f"{n}.jsonl"
        was_killed = killed_at(n, lambda path=path: AvoidList(path).add([entry("n1"), entry("n2")]))  # type: ignore[misc]
        AvoidList(path).add([entry("n1"), entry("n2")])
        assert names(path) == ["n1", "n2"]
        if not was_killed:
            assert n > 2
            return
    raise AssertionError("it never came to its end")


def test_of_what_checks_say_the_oldest_count_and_of_people_all() -> None:
    checked = [entry(f"n{number}") for number in range(5)]
    people = [entry(f"p{number}", source="person") for number in range(3)]
    assert within_cap((), [*checked, *people], 2) == (("n0", "n1", "p0", "p1", "p2"), 3)
    assert within_cap(("own",), checked[:1], 2) == (("n0", "own"), 0)
    assert within_cap(("own",), checked, 2) == (("n0", "n1"), 4)
    assert within_cap(("p0",), people, 0) == (("p0", "p1", "p2"), 0)


@pytest.mark.parametrize(("partition", "most"), [(None, 8), (3, 1), (40, 4), (1000, 8), (1, 1)])
def test_a_check_excludes_a_tenth_of_a_partition_at_most(partition: int | None, most: int) -> None:
    assert NodePolicy().most_at_once(partition) == most


def test_a_placeholder_that_nobody_fills_in_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"nothing is called \{hostnam\}.*hostname"):
        NodePolicy(disks=("/scratch/{hostnam}",))
