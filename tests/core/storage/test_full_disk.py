"""A disk that is full or read-only: one line with the path and what to do, and nothing changed."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoexp.config.compose import Composed
from autoexp.storage import lease
from tests.builders import create

ROOM = b"x" * 4096


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield path
    subprocess.run(["umount", path], check=True)


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(ROOM)
        except OSError:
            pass


def make_read_only(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)


def files(root: Path) -> dict[str, bytes]:
    found = {str(p): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    return {name: raw for name, raw in found.items() if not name.endswith(lease.LOCK)}


@pytest.mark.parametrize("spoil", [fill, make_read_only])
@pytest.mark.parametrize(
    ("words", "code", "named", "advice"),
    [
        ("resume s", 1, "sessions/s: ", "then `autoexp resume s`"),
        ("cancel s", 1, "sessions/s/monitor.", "then run the same command again"),
        (
            "submit demo project.name=o --session s",
            1,
            "s/inbox/",
            "then run the same command again",
        ),
        ("submit demo --session t", 2, "sessions: ", "free space there"),
        ("run demo --session t", 2, "sessions: ", "free space there"),
    ],
)
def test_a_command_that_cannot_write_says_where_and_what_to_do_in_one_line(
    disk: Path, composed: Composed, words: str, code: int, named: str, advice: str, spoil: object
) -> None:
    root = disk / "sessions"
    create(composed, root, session_id="s")
    assert callable(spoil)
    spoil(disk)
    before = files(root)

    answer = subprocess.run(
        [sys.executable, "-m", "autoexp", *words.split()],
        env={**os.environ, "AUTOEXP_SESSIONS": str(root)},
        capture_output=True,
        text=True,
    )

    assert answer.returncode == code, answer.stderr
    (line,) = answer.stderr.splitlines()
    assert named in line
    assert advice in line
    assert "No space left on device" in line or "Read-only file system" in line
    assert files(root) == before
