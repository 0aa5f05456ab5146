"""Finding sessions among what else lies below their root, and the one of a flow run."""

import itertools
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from autoexp.config.compose import Composed
from autoexp.errors import BadInput, SessionDamaged
from autoexp.reports.curves import read_curve
from autoexp.session import find
from autoexp.session.session import Session
from autoexp.storage import atomic, lease
from tests.builders import create
from tests.killing import KilledAt

RUN = "0a1b2c3d-0000-4000-8000-000000000001"
OTHER = "0a1b2c3d-0000-4000-8000-000000000002"


def with_file(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def made(path: Path) -> None:
        path.mkdir()
        make(path / "session.json")

    return made


NEIGHBOURS: dict[str, tuple[Callable[[Path], object], str]] = {
    "bytes": (with_file(lambda file: file.write_bytes(bytes(range(256)))), "does not parse"),
    "nested": (with_file(lambda file: file.write_text("[" * 100_000)), "does not parse"),
    "clockless": (with_file(lambda file: file.write_text('{"created": 1}')), "does not parse"),
    "empty": (with_file(lambda file: file.touch()), "does not parse"),
    "folder": (with_file(lambda file: file.mkdir()), "not a regular file"),
    "pipe": (with_file(os.mkfifo), "not a regular file"),
    "dangling": (with_file(lambda file: file.symlink_to("/nowhere")), "a link to nowhere"),
    "circle": (with_file(lambda file: file.symlink_to("session.json")), "symbolic link"),
    "nowhere": (lambda path: path.symlink_to("/nowhere"), "a link to nowhere"),
    "notes.txt": (lambda path: path.touch(), "a file, not a directory"),
    **(
        {"closed": (lambda path: path.mkdir(mode=0), "Permission denied")}
        if os.geteuid() != 0  # to whom nothing is closed
        else {}
    ),
}


def surround(root: Path) -> None:
    """Put everything beside the sessions that has stopped others."""
    for name, (make, _) in NEIGHBOURS.items():
        make(root / name)


def autoexp(root: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "autoexp", *words],
        env={**os.environ, "AUTOEXP_SESSIONS": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_whatever_lies_below_the_root_is_named_with_its_reason(
    tmp_path: Path, composed: Composed
) -> None:
    older = create(composed, tmp_path, session_id="z")
    newer = create(composed, tmp_path, session_id="a")
    surround(tmp_path)
    (tmp_path / "dry-run-a").mkdir()
    (tmp_path / ".hidden").mkdir()

    found = {one.path.name: one.problem for one in find.below(tmp_path)}

    assert set(found) == {"z", "a", *NEIGHBOURS}
    for name, (_, reason) in NEIGHBOURS.items():
        assert reason in str(found[name]), name
        assert str(tmp_path / name) in str(found[name])
    readable = [one.path for one in find.below(tmp_path) if one.problem is None]
    assert readable == [older, newer]


def test_no_neighbour_stops_a_command_and_none_is_touched(
    tmp_path: Path, composed: Composed
) -> None:
    create(composed, tmp_path, session_id="mine")
    surround(tmp_path)
    (tmp_path / "half").mkdir()
    shutil.copy(tmp_path / "mine" / "session.json", tmp_path / "half")
    before = sorted(path.name for path in tmp_path.iterdir())

    listed = autoexp(tmp_path, "sessions", "list")
    lines = {line.split()[0]: line for line in listed.stdout.splitlines()}
    assert set(lines) == {"mine", "half", *NEIGHBOURS}, listed.stderr
    assert "damaged" in lines["half"]
    assert all("unreadable" in lines[name] for name in NEIGHBOURS)
    assert "jobs" in lines["mine"]
    assert listed.stderr == ""
    as_json = autoexp(tmp_path, "sessions", "list", "--json")
    assert {row["session"] for row in json.loads(as_json.stdout)} == set(lines)
    assert len(as_json.stderr.splitlines()) == len(NEIGHBOURS) + 1

    shutil.rmtree(tmp_path / "half")
    status = autoexp(tmp_path, "status")
    assert status.stdout.startswith("session mine"), status.stderr
    made = autoexp(tmp_path, "submit", "demo", "--session", "next", "cooldowns=[]", "--yes")
    assert made.returncode == 0, made.stderr
    removed = autoexp(tmp_path, "sessions", "remove", "next", "--yes")
    assert removed.returncode == 0, removed.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        name for name in before if name != "half"
    ]


def test_a_pipe_in_the_place_of_a_sessions_file_is_damage_and_is_not_waited_for(
    session_path: Path,
) -> None:
    (session_path / "session.json").unlink()
    os.mkfifo(session_path / "session.json")
    with pytest.raises(SessionDamaged, match="not a regular file"):
        Session.load(session_path)


WRONG: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "directory": Path.mkdir,
    "holes": lambda path: (path.touch(), os.truncate(path, 1 << 40)),
}
FILES = ("session.json", "events.jsonl", "monitor.json", "jobs/tiny.json", "blame.json")


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("file", FILES)
def test_a_file_of_a_session_that_is_none_is_damage_and_is_neither_waited_for_nor_read_whole(
    session_path: Path, file: str, kind: str
) -> None:
    (session_path / file).unlink(missing_ok=True)
    WRONG[kind](session_path / file)
    with pytest.raises(SessionDamaged, match=re.escape(str(session_path / file))):
        lease.look(Session.load(session_path).path)


def test_metrics_that_are_none_are_damage_and_are_not_waited_for(session_path: Path) -> None:
    (session_path / "metrics").mkdir(exist_ok=True)
    os.mkfifo(session_path / "metrics" / "tiny.csv")
    with pytest.raises(SessionDamaged, match=r"tiny\.csv"):
        read_curve(session_path, "tiny")


def test_a_lease_that_is_no_file_any_more_is_not_held(session_path: Path) -> None:
    held = lease.take(session_path)
    (session_path / "monitor.json").unlink()
    os.mkfifo(session_path / "monitor.json")
    assert not held.still_held()


def test_the_session_of_a_flow_run_is_found_and_no_other_one_is_read(
    tmp_path: Path, composed: Composed, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        create(composed, tmp_path, session_id=f"s{number}", flow_run_id=f"{RUN[:-1]}{number}")
    read: list[Path] = []
    real = atomic.read
    monkeypatch.setattr(atomic, "read", lambda path: read.append(path) or real(path))

    assert find.session_of(f"{RUN[:-1]}3", tmp_path) == tmp_path / "s3"
    assert read == [tmp_path / "s3" / "session.json"]
    read.clear()
    assert find.session_of(OTHER[:-1] + "9", tmp_path) is None
    assert read == []


def test_a_session_from_before_the_index_is_found_past_neighbours_that_cannot_be_read(
    tmp_path: Path, composed: Composed
) -> None:
    path = create(composed, tmp_path, session_id="old", flow_run_id=RUN)
    shutil.rmtree(tmp_path / f".flow-runs-{os.geteuid()}")
    (path / find.MARK).unlink()
    surround(tmp_path)

    assert find.session_of(RUN, tmp_path) == path
    assert find.session_of(OTHER, tmp_path) is None
    assert find.session_of("None", tmp_path) is None

    find.take_up(path, [RUN, OTHER])
    assert find.claimed(RUN, tmp_path) == find.claimed(OTHER, tmp_path) == "old"
    assert (path / find.MARK).exists()


def test_a_flow_run_that_was_killed_while_it_made_its_session_makes_it_once(
    tmp_path: Path, composed: Composed, killed_at: KilledAt
) -> None:
    ends = set()
    for n in itertools.count(1):
        root = tmp_path / str(n)
        killed = killed_at(n, lambda root=root: create(composed, root, flow_run_id=RUN))  # type: ignore[misc]
        left, decided = find.session_of(RUN, root), find.claimed(RUN, root)
        ends.add((left is not None, decided is not None))

        path = create(composed, root, flow_run_id=RUN)

        assert left in (None, path)
        assert decided in (None, path.name)
        assert [one.path for one in find.below(root)] == [path]
        assert create(composed, root, flow_run_id=RUN) == path == find.session_of(RUN, root)
        if not killed:
            break
    assert ends == {(False, False), (False, True), (True, True)}


def test_a_flow_run_that_two_processes_run_makes_one_session(
    tmp_path: Path, composed: Composed
) -> None:
    context = multiprocessing.get_context("fork")
    together = context.Barrier(4)

    def make() -> None:
        together.wait()
        try:
            create(composed, tmp_path, flow_run_id=RUN)
        except BadInput:
            os._exit(2)
        os._exit(0)

    processes = [context.Process(target=make) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)

    assert 0 in [process.exitcode for process in processes]
    assert {process.exitcode for process in processes} <= {0, 2}
    (one,) = find.below(tmp_path)
    assert find.session_of(RUN, tmp_path) == one.path


def test_a_damaged_session_of_a_flow_run_is_not_made_a_second_time(
    tmp_path: Path, composed: Composed
) -> None:
    path = create(composed, tmp_path, flow_run_id=RUN)
    (path / "session.json").unlink()
    os.mkfifo(path / "session.json")
    assert find.session_of(RUN, tmp_path) == path  # whoever loads it says what is wrong

    (path / "session.json").unlink()
    (path / "session.json").write_bytes(b"\xff")
    with pytest.raises(BadInput, match="this session exists"):
        create(composed, tmp_path, flow_run_id=RUN)


def test_the_flow_run_of_a_removed_session_makes_a_new_one(
    tmp_path: Path, composed: Composed
) -> None:
    path = create(composed, tmp_path, flow_run_id=RUN)
    assert autoexp(tmp_path, "sessions", "remove", path.name, "--yes").returncode == 0
    assert find.session_of(RUN, tmp_path) is None
    assert find.claimed(RUN, tmp_path) is None


def test_taking_a_session_up_again_costs_the_same_however_often_it_was(
    session_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(atomic, "sync_directory", synced.append)
    runs = [f"run-{number}" for number in range(50)]
    find.take_up(session_path, runs)
    synced.clear()
    find.take_up(session_path, [*runs, "one-more"])
    assert len(synced) == 1
    assert find.claimed("one-more", session_path.parent) == session_path.name
