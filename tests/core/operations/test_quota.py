"""Quotas of a filesystem: whose, how much, and what is said where nothing can be known.

The answers have the form that the manuals of Lustre, Storage Scale and Linux give; none of these
filesystems was at hand.
"""

import os
from pathlib import Path

import pytest

from autoexp.operations.doctor import host as doctor
from autoexp.operations.doctor import quota
from autoexp.operations.doctor.quota import Mount, Quota, Unknown, mount_of, quotas
from tests.fakes.slurm import Fakes

TABLE = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 22 0:35 / /scratch rw shared:2 - lustre 10.0.0.1@o2ib:/scratch rw,flock
41 22 0:36 / /scratch/my\\040own rw shared:3 - nfs4 server:/own rw
42 22 0:37 / /p rw - gpfs /dev/gpfs1 rw
not a line of it
"""
LUSTRE = Mount("lustre", "/scratch", "10.0.0.1@o2ib:/scratch")
GPFS = Mount("gpfs", "/p", "/dev/gpfs1")


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return Fakes(folder)


@pytest.mark.parametrize(
    ("folder", "point"),
    [
        ("/home/me", "/"),
        ("/scratch", "/scratch"),
        ("/scratch/project/x", "/scratch"),
        ("/scratch2", "/"),
        ("/scratch/my own/x", "/scratch/my own"),
    ],
)
def test_a_folder_lies_on_the_innermost_mount_above_it(folder: str, point: str) -> None:
    mount = mount_of(Path(folder), TABLE)
    assert mount is not None
    assert mount.point == point


def test_no_table_of_mounts_raises() -> None:
    assert mount_of(Path("/x"), "nothing - here\n\0\n - ") is None


def test_lustre_is_asked_for_the_user_the_group_and_the_project(
    fakes: Fakes, tmp_path: Path
) -> None:
    fakes.tell(
        "lfs",
        'case "$*" in "project -d"*) echo "46200 P /scratch/x";;\n'
        '*-u*) echo "       /scratch 2048* 1024 4096 6d23h 12 0 100 -";;\n'
        '*-g*) printf "/scratch\\n 7 0 0 - 3 0 0 -\\n";;\n'
        '*-p*) echo "/scratch 1 0 10485760 - 5 0 2000000 -";; esac',
    )
    assert list(quotas(tmp_path, LUSTRE)) == [
        Quota("you", 2048 * 1024, 1024 * 1024, 12, 100),
        Quota("the group", 7 * 1024, None, 3, None),
        Quota("project 46200", 1024, 10 * 2**30, 5, 2_000_000),
    ]
    asked = fakes.calls("lfs")
    assert f"quota -q -u {os.getuid()} /scratch" in asked


def test_storage_scale_answers_by_the_names_of_its_columns(fakes: Fakes, tmp_path: Path) -> None:
    head = (
        "mmlsquota::HEADER:version:reserved:reserved:filesystemName:quotaType:id:name:blockUsage:"
        "blockQuota:blockLimit:blockInDoubt:blockGrace:filesUsage:filesQuota:filesLimit:"
        "filesInDoubt:filesGrace:remarks:quota:defQuota:fid:filesetname:"
    )
    fakes.says(
        "mmlsquota",
        head,
        "mmlsquota::0:1:::gpfs1:USR:1000:me:100:0:200:0:none:5:10:20:0:none::on:off::root:",
        "mmlsquota::0:1:::gpfs2:USR:1000:me:1:0:2:0:none:5:10:20:0:none::on:off::root:",
        "mmlsquota::0:1:::gpfs1:GRP:7:lab:oops:0:0:0:none:5:0:0:0:none::on:off::data:",
    )
    assert list(quotas(tmp_path, GPFS)) == [
        Quota("you", 100 * 1024, 200 * 1024, 5, 10),
        Quota("grp data", 0, None, 5, None),
    ]


def test_nfs_is_asked_by_quota_whose_failure_says_that_it_is_exceeded(
    fakes: Fakes, tmp_path: Path
) -> None:
    fakes.tell(
        "quota",
        "echo 'Disk quotas for user me (uid 1000): '\n"
        "echo '     Filesystem blocks   quota   limit   grace   files   quota   limit   grace'\n"
        "echo 'server:/home  5000*  4000  6000  1764460000  10 0 0 0'\nexit 1",
    )
    mount = Mount("nfs4", "/home", "server:/home")
    answer, *_ = quotas(tmp_path, mount)
    assert answer == Quota("you", 5000 * 1024, 4000 * 1024, 10, None)


@pytest.mark.parametrize("mount", [LUSTRE, GPFS, Mount("nfs", "/n", "s:/n")], ids=lambda x: x.kind)
def test_a_shared_filesystem_without_its_command_is_not_known(
    mount: Mount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (answer,) = quotas(tmp_path, mount)
    assert isinstance(answer, Unknown)
    assert mount.point in answer.text


def test_what_a_command_says_against_it_is_passed_on(fakes: Fakes, tmp_path: Path) -> None:
    fakes.tell("lfs", "echo 'quotactl failed: Permission denied' >&2; exit 1")
    texts = [each.text for each in quotas(tmp_path, LUSTRE) if isinstance(each, Unknown)]
    assert texts == ["lfs: quotactl failed: Permission denied"] * 2


def test_a_command_that_hangs_is_left_in_a_bounded_time(
    fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota, "_PATIENCE_S", 0.2)
    fakes.tell("lfs", "exec sleep 60")
    assert all(isinstance(each, Unknown) for each in quotas(tmp_path, LUSTRE))


@pytest.mark.parametrize(
    ("used", "verdict"),
    [
        (Quota("you", 0, 2**40, 0, 10**6), "ok"),
        (Quota("you", 2**40 - 1, 2**40, 0, 10**6), "to mend"),
        (Quota("you", 0, 2**40, 999_999, 10**6), "to mend"),
        (Quota("you", 0, None, 5, 10**6), "ok"),
    ],
)
def test_little_room_in_bytes_or_files_is_to_be_mended(used: Quota, verdict: str) -> None:
    answer = doctor._quota("/scratch", used)
    assert answer.verdict == verdict
    assert "/scratch: you: " in answer.text
