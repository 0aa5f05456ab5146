"""Writes that survive: after a failure or a kill the file is the old one or the new one, whole."""

import errno
import itertools
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoexp.storage import atomic, locks
from tests.disks import FullDisk
from tests.killing import KilledAt
from tests.processes import exit_code, in_a_process

OLD, NEW = b"old " * 1000, b"new " * 2000
NOBODY = 65534


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# write


def test_a_write_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(OLD)
    atomic.write(path, NEW)
    assert path.read_bytes() == NEW
    assert names_in(tmp_path) == ["file.json"]


def test_a_written_text_is_utf_8_and_json_reads_back(tmp_path: Path) -> None:
    atomic.write(tmp_path / "text", "Hägele\n")
    assert (tmp_path / "text").read_bytes() == "Hägele\n".encode()
    atomic.write_json(tmp_path / "json", {"a": ["ö", 1.5, None]})
    assert json.loads((tmp_path / "json").read_bytes()) == {"a": ["ö", 1.5, None]}


def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, full_disk: FullDisk
) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    with full_disk(len(OLD)), pytest.raises(OSError) as raised:
        atomic.write(path, NEW)
    assert raised.value.filename == str(path)
    assert path.read_bytes() == OLD
    assert names_in(tmp_path) == ["file"]


def test_a_name_that_is_taken_by_a_directory_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError):
        atomic.write(tmp_path / "file", NEW)
    assert names_in(tmp_path) == ["file"]


def test_a_read_only_directory_leaves_the_old_file() -> None:
    # Not tmp_path: whoever is not root could not even enter it.
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "file"
        path.write_bytes(OLD)
        path.parent.chmod(0o555)

        def write() -> int:
            if os.geteuid() == 0:
                os.setuid(NOBODY)
            try:
                atomic.write(path, NEW)
            except PermissionError:
                return 13
            return 0

        assert exit_code(in_a_process(write)) == 13
        assert path.read_bytes() == OLD
        assert names_in(path.parent) == ["file"]


def test_a_kill_at_any_step_of_a_write_leaves_the_old_file_or_the_new_one(
    tmp_path: Path, killed_at: KilledAt
) -> None:
    path = tmp_path / "file"
    seen = []
    for n in itertools.count(1):
        path.write_bytes(OLD)
        killed = killed_at(n, lambda: atomic.write(path, NEW))
        seen.append(path.read_bytes())
        if not killed:
            break
    assert len(seen) > 2
    assert seen[0] == OLD
    assert seen[-1] == NEW
    assert set(seen) == {OLD, NEW}


# Names and modes


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


UMASKS = pytest.mark.parametrize("umask", [0, 0o022, 0o002, 0o077], indirect=True, ids=oct)


def modes_in(directory: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.rglob("*")}


@UMASKS
@pytest.mark.parametrize("top", [0o700, 0o750, 0o2750, 0o777], ids=oct)
def test_what_is_made_is_readable_for_whom_its_directory_is_under_any_umask(
    tmp_path: Path, umask: int, top: int
) -> None:
    session = tmp_path / "session"
    atomic.make_own_directory(session, top & 0o777)
    session.chmod(top)

    atomic.make_directory(session / "above" / "folder")
    atomic.write(session / "above" / "folder" / "file", NEW)
    atomic.write(session / "script", NEW, executable=True)
    atomic.append(session / "lines", b"one\n")
    os.close(locks.open_lock(session / "lock"))

    modes = modes_in(session)
    assert modes["above"] & 0o777 == modes["folder"] & 0o777 == 0o700 | top & 0o055
    assert modes["above"] & stat.S_ISGID == top & stat.S_ISGID
    assert modes["script"] == 0o700 | top & 0o044 | (top & 0o044) >> 2
    assert modes["file"] == modes["lines"] == modes["lock"] == 0o600 | top & 0o044


@UMASKS
def test_what_is_the_users_own_follows_the_umask(tmp_path: Path, umask: int) -> None:
    atomic.make_directory(tmp_path / "above" / "folder", by_umask=True)
    atomic.write(tmp_path / "file", NEW, by_umask=True)
    atomic.write(tmp_path / "script", NEW, executable=True, by_umask=True)
    atomic.append_once(tmp_path / "lines", "one")

    modes = modes_in(tmp_path)
    assert modes["file"] == modes["lines"] == 0o666 & ~umask
    assert modes["script"] == modes["above"] == modes["folder"] == 0o777 & ~umask


@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127])
def test_a_name_of_255_bytes_can_be_written(tmp_path: Path, name: str) -> None:
    atomic.write(tmp_path / name, OLD)
    atomic.write(tmp_path / name, NEW)
    assert (tmp_path / name).read_bytes() == NEW
    assert names_in(tmp_path) == [name]


def test_a_name_that_is_too_long_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(OSError) as raised:
        atomic.write(tmp_path / ("n" * 256), NEW)
    assert not atomic.is_passing(raised.value)
    assert names_in(tmp_path) == []


LASTS = [
    "ENAMETOOLONG",
    "EACCES",
    "EPERM",
    "ENOENT",
    "ENOTDIR",
    "EISDIR",
    "EEXIST",
    "ELOOP",
    "EINVAL",
    "EFBIG",
    "EMLINK",
    "ENOTEMPTY",
    "ENOSYS",
    "ENOTSUP",
    "EILSEQ",
]
PASSES = [
    "ENOSPC",
    "EDQUOT",
    "EIO",
    "EROFS",
    "ESTALE",
    "ETIMEDOUT",
    "EAGAIN",
    "EMFILE",
    "ENFILE",
    "ENOMEM",
    "EINTR",
    "EBUSY",
    "ENOLCK",
    "ENOTCONN",
    "ESHUTDOWN",
    "EHOSTDOWN",
    "EKEYEXPIRED",
]


@pytest.mark.parametrize("name", PASSES + LASTS)
def test_what_passes_is_tried_again_and_what_lasts_is_not(name: str) -> None:
    error = OSError(getattr(errno, name), "said so")
    assert atomic.is_passing(error) is (name in PASSES)
    assert not atomic.is_passing(OSError("without a number"))


# What is synced


def test_a_new_file_that_is_appended_to_is_synced_in_its_parent(
    tmp_path: Path, synced: list[str]
) -> None:
    path = tmp_path / "file"
    atomic.append(path, b"one\n")
    assert synced == [str(path), str(tmp_path)]
    synced.clear()
    atomic.append(path, b"two\n")
    assert synced == [str(path)]


def test_each_new_directory_is_synced_in_its_parent(tmp_path: Path, synced: list[str]) -> None:
    atomic.make_directory(tmp_path / "a" / "b" / "c")
    assert synced == [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b")]
    synced.clear()
    atomic.make_directory(tmp_path / "a" / "b" / "c")
    assert synced == []
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        atomic.make_directory(tmp_path / "file")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_filesystem_that_cannot_sync_a_directory_is_good_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fsync = os.fsync

    def picky(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", picky)
    atomic.write(tmp_path / "file", NEW)
    atomic.append(tmp_path / "lines", b"one\n")
    atomic.make_directory(tmp_path / "a" / "b")
    atomic.sync_directory(tmp_path)
    assert names_in(tmp_path) == ["a", "file", "lines"]

    def broken(_: int) -> None:
        raise OSError(errno.EIO, "the device is broken")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="the device is broken"):
        atomic.sync_directory(tmp_path)


# append


def test_an_append_adds_to_what_is_there(tmp_path: Path) -> None:
    atomic.append(tmp_path / "file", b"one\n")
    atomic.append(tmp_path / "file", b"two\n")
    assert (tmp_path / "file").read_bytes() == b"one\ntwo\n"


def test_appends_of_many_processes_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    lines = [name.encode() * 5000 + b"\n" for name in "abcdef"]
    children = [in_a_process(lambda line=line: atomic.append(path, line)) for line in lines]  # type: ignore[misc]
    assert [exit_code(child) for child in children] == [0] * 6
    assert sorted(path.read_bytes().splitlines(keepends=True)) == lines


def test_an_append_to_a_full_disk_leaves_the_file_as_it_was(
    tmp_path: Path, full_disk: FullDisk
) -> None:
    path = tmp_path / "file"
    atomic.append(path, b"one\n")
    with full_disk(7), pytest.raises(OSError) as raised:
        atomic.append(path, b"two\n")
    assert raised.value.filename == str(path)
    assert path.read_bytes() == b"one\n"


def test_a_kill_at_any_step_of_an_append_leaves_whole_lines(
    tmp_path: Path, killed_at: KilledAt
) -> None:
    path = tmp_path / "file"
    seen = []
    for n in itertools.count(1):
        path.write_bytes(b"one\n")
        killed = killed_at(n, lambda: atomic.append(path, b"two\n"))
        seen.append(path.read_bytes())
        if not killed:
            break
    assert len(seen) > 2
    assert seen[0] == b"one\n"
    assert set(seen) == {b"one\n", b"one\ntwo\n"}
