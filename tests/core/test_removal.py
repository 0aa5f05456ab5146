"""Removing a session: whole or gone, whatever the moment of a kill."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoexp import removal
from autoexp.compose import Composed
from tests.core.conftest import KilledAt, create


def autoexp(root: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "autoexp", *words],
        env={**os.environ, "AUTOEXP_SESSIONS": str(root)},
        capture_output=True,
        text=True,
    )


def test_a_kill_at_any_step_of_a_removal_leaves_a_whole_session_or_none(
    tmp_path: Path, composed: Composed, killed_at: KilledAt
) -> None:
    seen = []
    for n in itertools.count(1):
        path = tmp_path / "s"
        if not path.exists():
            create(composed, tmp_path, session_id="s")
        whole = sorted(path.rglob("*"))

        killed = killed_at(n, lambda path=path: removal.remove(path))  # type: ignore[misc]

        if path.exists():
            assert sorted(path.rglob("*")) == whole
        assert {found.name for found in tmp_path.iterdir() if found.name[0] != "."} <= {"s"}
        seen.append(path.exists())
        if not killed:
            break
    assert seen[0]
    assert len(seen) - sum(seen) > 5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("helper", ["creation", "removal"])
def test_what_a_killed_removal_left_is_deleted_by_the_next_removal_or_creation(
    tmp_path: Path, composed: Composed, helper: str
) -> None:
    create(composed, tmp_path, session_id="s").rename(tmp_path / f"{removal._PREFIX}s-1234")
    create(composed, tmp_path / "elsewhere", session_id="t").rename(tmp_path / "t")
    assert "s" not in autoexp(tmp_path, "sessions", "list").stdout.split()

    if helper == "creation":
        create(composed, tmp_path, session_id="u")
    else:
        removal.remove(tmp_path / "t")
    assert not list(tmp_path.glob(".*"))


def test_a_link_to_a_moved_session_is_not_followed(tmp_path: Path, composed: Composed) -> None:
    path = create(composed, tmp_path, session_id="s").rename(tmp_path / "moved")
    (tmp_path / "s").symlink_to(path)

    answer = autoexp(tmp_path, "sessions", "remove", "s")

    assert answer.returncode == 2
    assert f"a link to {path}" in answer.stderr
    assert (path / "session.json").exists()


def test_what_looks_like_a_removed_session_and_is_a_link_is_not_followed(
    tmp_path: Path, composed: Composed
) -> None:
    victim = tmp_path / "victim"
    (victim / "thesis").mkdir(parents=True)
    (victim / "thesis" / "chapter1").touch()
    (victim / "weights.pt").touch()
    root = tmp_path / "root"
    create(composed, root, session_id="s")
    (root / f"{removal._PREFIX}x").symlink_to(victim)
    (root / f"{removal._PREFIX}y").mkdir()
    (root / f"{removal._PREFIX}y" / "jobs").symlink_to(victim)

    create(composed, root, session_id="t")
    removal.remove(root / "s")

    assert (victim / "thesis" / "chapter1").exists()
    assert (victim / "weights.pt").exists()
    assert not (root / f"{removal._PREFIX}y").exists()
