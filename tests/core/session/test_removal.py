"""Removing a session: whole or gone, whatever the moment of a kill."""

import errno
import itertools
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from autoexp.cli.main import main
from autoexp.config.compose import Composed
from autoexp.session import remove
from autoexp.session.session import Session
from tests.builders import create
from tests.killing import KilledAt
from tests.sources import MODULES, name_of


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

        killed = killed_at(n, lambda path=path: remove.remove(path))  # type: ignore[misc]

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
    tmp_path: Path, composed: Composed, killed_at: KilledAt, helper: str
) -> None:
    path, n = create(composed, tmp_path, session_id="s"), itertools.count(1)
    while path.exists():
        assert killed_at(next(n), lambda: remove.remove(path))
    assert list(tmp_path.glob(f"{remove._PREFIX}s-*"))
    create(composed, tmp_path / "elsewhere", session_id="t").rename(tmp_path / "t")
    assert "s" not in autoexp(tmp_path, "sessions", "list").stdout.split()

    if helper == "creation":
        create(composed, tmp_path, session_id="u")
    else:
        remove.remove(tmp_path / "t")
    assert not list(tmp_path.glob(".*"))


def test_what_a_removal_says_of_outputs_elsewhere_is_so(tmp_path: Path, composed: Composed) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    project = composed.experiment.project.model_copy(update={"output_root": str(out)})
    experiment = composed.experiment.model_copy(update={"project": project})
    for name in ("unused", "used"):
        create(composed._replace(experiment=experiment), root, session_id=name)
    (out / "used" / "tiny").mkdir()
    create(composed, root, session_id="within")

    said = {
        name: autoexp(root, "sessions", "remove", name, "--yes")
        for name in ("unused", "used", "within")
    }

    for name in ("unused", "within"):
        assert said[name].stdout == f"removed {root / name}\n", said[name].stderr
    assert "what its jobs wrote there" in said["used"].stdout
    assert f"kept    {out / 'used'}:" in said["used"].stdout
    assert [path.name for path in out.iterdir()] == ["used"]


def test_a_removal_says_what_will_be_gone_and_asks(
    session_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUTOEXP_SESSIONS", str(session_path.parent))
    with Session.hold(session_path) as (session, _):
        job = session.jobs["tiny"]
        session.change_job(job, checkpoints=[100, 200])
        weights = Path(job.spec.save_dir) / "weights"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(bytes(2_500_000))
    os.link(weights, weights.with_name("seeded"))  # a cooldown's start takes no space of its own
    files = sum(not found.is_dir() for found in session_path.rglob("*"))
    words, asked = ["sessions", "remove", session_path.name], []

    assert main(words) == 2  # nobody is there to be asked
    said = capsys.readouterr().err
    assert f"2 checkpoints of 1 jobs, {files - 1} files, 2.5" in said and " MB" in said
    assert "`--yes` agrees to it" in said

    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "n")
    assert main(words) == 2
    assert "2 checkpoints" in asked[0] and asked[0].endswith("Go ahead? [y/N] ")
    assert weights.exists()
    monkeypatch.setattr("builtins.input", lambda question: "y")
    assert main(words) == 0
    assert not session_path.exists()


@pytest.mark.parametrize(
    ("size", "said"),
    [(0, "0 bytes"), (999, "999 bytes"), (1_240_000_000, "1.24 GB"), (3 * 10**13, "30 TB")],
)
def test_a_size_is_told_in_its_unit(size: int, said: str) -> None:
    assert str(remove.Size(1, size)) == said


def test_a_link_to_a_moved_session_is_not_followed(tmp_path: Path, composed: Composed) -> None:
    path = create(composed, tmp_path, session_id="s").rename(tmp_path / "moved")
    (tmp_path / "s").symlink_to(path)

    answer = autoexp(tmp_path, "sessions", "remove", "s", "--yes")

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
    (root / f"{remove._PREFIX}x").symlink_to(victim)
    (root / f"{remove._PREFIX}y").mkdir()
    (root / f"{remove._PREFIX}y").chmod(0o1700)  # ours, and marked
    (root / f"{remove._PREFIX}y" / "jobs").symlink_to(victim)

    create(composed, root, session_id="t")
    remove.remove(root / "s")

    assert (victim / "thesis" / "chapter1").exists()
    assert (victim / "weights.pt").exists()
    assert not (root / f"{remove._PREFIX}y").exists()


def test_a_session_that_somebody_renamed_to_look_like_a_removed_one_or_a_draft_is_kept(
    tmp_path: Path, composed: Composed
) -> None:
    draft = f".new-{socket.gethostname()}-{2**22 + 1}-x"  # of a process that cannot be
    for name in (f"{remove._PREFIX}s-1234", draft):
        create(composed, tmp_path, session_id="s").rename(tmp_path / name)

    create(composed, tmp_path, session_id="t")
    remove.remove(tmp_path / "t")

    assert (tmp_path / f"{remove._PREFIX}s-1234" / "session.json").exists()
    assert (tmp_path / draft / "session.json").exists()


def test_what_another_user_marked_to_be_deleted_is_none_of_ours(
    tmp_path: Path, composed: Composed
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    theirs = tmp_path / f"{remove._PREFIX}x"
    (theirs / "jobs").mkdir(parents=True)
    theirs.chmod(0o1700)
    os.chown(theirs, 65534, 65534)
    create(composed, tmp_path, session_id="t")
    assert (theirs / "jobs").exists()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_folders_are_deleted_in_few_places_all_of_which_follow_no_link(path: Path) -> None:
    known = {
        "autoexp/session/remove.py",
        "autoexp/backends/pins.py",
        "autoexp/backends/merge.py",
        "autoexp/demo/checkpoints.py",
        "autoexp/operations/drill/guard.py",
        "flows/deployment/postgres.py",
    }
    if name_of(path) not in known and not name_of(path).startswith("bench/"):
        assert "rmtree" not in path.read_text()


def test_a_session_is_removed_where_directories_cannot_be_synced(
    tmp_path: Path, composed: Composed, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = create(composed, tmp_path, session_id="s")

    def refused(_: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refused)
    remove.remove(path)
    assert list(tmp_path.iterdir()) == []
