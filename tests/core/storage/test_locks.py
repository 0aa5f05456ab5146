"""Locks on files: held by whoever inherited them, on filesystems with and without flock."""

import errno
import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoexp.config.compose import Composed
from autoexp.errors import BadInput
from autoexp.schedulers.base import LOCK, is_locked
from autoexp.storage import lease, locks
from tests.builders import create
from tests.processes import WaitFor, exit_code, in_a_process


def fail_with(number: int) -> object:
    def failing(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return failing


@pytest.fixture(params=[None, errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL])
def flock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem with flock, and ones that say in their ways that they have none."""
    if request.param is not None:
        monkeypatch.setattr(fcntl, "flock", fail_with(request.param))


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A filesystem without any, as Lustre that was mounted without `flock`."""
    monkeypatch.setattr(fcntl, "flock", fail_with(errno.ENOSYS))
    monkeypatch.setattr(fcntl, "fcntl", fail_with(errno.ENOSYS))
    yield


@pytest.mark.usefixtures("flock")
def test_one_has_the_lock_until_it_closes_the_file(tmp_path: Path) -> None:
    first, second = (locks.open_lock(tmp_path / "lock") for _ in range(2))
    assert locks.try_lock(first)
    assert locks.try_lock(first), "it is its own"
    assert not locks.try_lock(second)
    assert exit_code(in_a_process(lambda: locks.try_lock(locks.open_lock(tmp_path / "lock")))) == 0
    os.close(first)
    assert locks.try_lock(second)
    os.close(second)


@pytest.mark.usefixtures("flock")
def test_a_process_that_inherited_the_lock_holds_it_on(tmp_path: Path, wait_for: WaitFor) -> None:
    descriptor = locks.open_lock(tmp_path / LOCK)
    assert locks.try_lock(descriptor)
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(descriptor,)
    ) as heir:
        os.close(descriptor)
        assert is_locked(tmp_path)
        heir.kill()
        heir.wait()
    wait_for(lambda: not is_locked(tmp_path), "the lock")


@pytest.mark.usefixtures("flock")
def test_the_lease_excludes_with_and_without_flock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_PATIENCE_S", 0.0)
    held = lease.take(tmp_path)
    lock = tmp_path / lease.LOCK
    with held.writing(), pytest.raises(locks.Busy), locks.exclusively(lock, 0.0):
        pytest.fail("two at once")
    with locks.exclusively(tmp_path / lease.LOCK, 0.0):
        pass


@pytest.mark.usefixtures("without_locks")
def test_a_filesystem_without_locks_is_refused_in_one_sentence_before_anything_is_made(
    tmp_path: Path, composed: Composed
) -> None:
    root = tmp_path / "sessions"
    with pytest.raises(BadInput, match=f"{re.escape(str(root))}: .*files cannot be locked here"):
        create(composed, root, session_id="s")
    assert list(root.iterdir()) == []


@pytest.mark.usefixtures("without_locks")
def test_a_lease_on_a_filesystem_without_locks_is_not_taken(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="files cannot be locked here") as raised:
        lease.take(tmp_path)
    assert raised.value.filename == str(tmp_path / lease.LOCK)
    assert not (tmp_path / lease.FILE).exists()


def test_an_error_that_says_nothing_about_locks_is_not_taken_for_their_absence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", fail_with(errno.EIO))
    with pytest.raises(OSError) as raised:
        lease.take(tmp_path)
    assert raised.value.errno == errno.EIO
