"""Quotas of the user where sessions and checkpoints lie: free space of a disk says nothing of them.

Sources: `lfs-quota(1)` and `lfs-project(1)` of Lustre, `mmlsquota -Y` of Storage Scale (GPFS), and
`quota(1)` for NFS and local disks, whose rows are like Lustre's. Sizes are KiB in all three.
"""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from autoexp.errors import SchedulerUnavailable
from autoexp.schedulers.slurm.commands import bounded

_PATIENCE_S = 10.0
_GPFS = "/usr/lpp/mmfs/bin"
_SHARED = frozenset({"lustre", "gpfs", "nfs", "nfs4"})
_ROW = re.compile(r"(\d+)\*?\s+(\d+)\s+(\d+)\s+\S+\s+(\d+)\*?\s+(\d+)\s+(\d+)")
"""What is used, soft and hard limit, and grace: of KiB, then of files."""
_ESCAPED = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """A mounted filesystem."""

    kind: str
    point: str
    source: str


class Quota(NamedTuple):
    """What one owner uses of a filesystem, and may use; None: without a limit."""

    owner: str
    used_bytes: int
    limit_bytes: int | None
    used_files: int
    limit_files: int | None


class Unknown(NamedTuple):
    """Why nothing is known of quotas."""

    text: str


def mount_of(folder: Path, table: str) -> Mount | None:
    """Find the filesystem that a folder lies on, in the text of `/proc/self/mountinfo`."""
    path, best = os.path.realpath(folder), None
    for line in table.splitlines():
        first, _, second = line.partition(" - ")
        words, origin = first.split(), second.split()
        if len(words) < 5 or len(origin) < 2:
            continue
        point = _plain(words[4])
        below = path == point or path.startswith(point.rstrip("/") + "/")
        if below and (best is None or len(point) >= len(best.point)):
            best = Mount(origin[0], point, _plain(origin[1]))
    return best


def _plain(escaped: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), escaped)


def quotas(folder: Path, mount: Mount) -> Iterator[Quota | Unknown]:
    """Ask the filesystem for the quotas that count for this user's files in a folder."""
    if mount.kind == "lustre":
        yield from _of_lustre(folder, mount)
    elif mount.kind == "gpfs":
        yield from _of_gpfs(mount)
    elif shutil.which("quota") is not None:
        # It fails where a quota is exceeded, and says nothing where there is none.
        for kind, name in (("-u", "you"), ("-g", "a group of yours")):
            answer = _answer("quota", "-w", "-p", kind)
            if not isinstance(answer, Unknown):
                yield from _rows(name, answer.replace(mount.source, mount.point), mount.point)
    elif mount.kind in _SHARED:
        yield Unknown(f"{mount.point}: no command `quota` on PATH")


def _of_lustre(folder: Path, mount: Mount) -> Iterator[Quota | Unknown]:
    if shutil.which("lfs") is None:
        yield Unknown(f"{mount.point} is Lustre, and no command `lfs` is on PATH")
        return
    owners = [("-u", str(os.getuid()), "you"), ("-g", str(folder.stat().st_gid), "the group")]
    project = _answer("lfs", "project", "-d", str(folder))
    if not isinstance(project, Unknown) and (words := project.split()) and words[0].isdecimal():
        owners += [("-p", words[0], f"project {words[0]}")] if words[0] != "0" else []
    for option, number, name in owners:
        answer = _answer("lfs", "quota", "-q", option, number, mount.point)
        if isinstance(answer, Unknown):
            yield answer
        else:
            yield from _rows(name, answer, mount.point)


def _rows(owner: str, text: str, point: str) -> Iterator[Quota]:
    """Read rows of `quota` or `lfs quota`; a long path stands on a line of its own."""
    for after in text.split(point)[1:]:
        if match := _ROW.match(after.lstrip()):
            kib, soft, hard, files, soft_files, hard_files = map(int, match.groups())
            limit = (soft or hard) * 1024
            yield Quota(owner, kib * 1024, limit or None, files, soft_files or hard_files or None)


def _of_gpfs(mount: Mount) -> Iterator[Quota | Unknown]:
    program = shutil.which("mmlsquota") or shutil.which("mmlsquota", path=_GPFS)
    if program is None:
        yield Unknown(f"{mount.point} is Storage Scale, and no command `mmlsquota` is there")
        return
    answer = _answer(program, "-Y")
    if isinstance(answer, Unknown):
        yield answer
        return
    names: Sequence[str] = ()
    for line in answer.splitlines():
        words = line.split(":")
        if "HEADER" in words[:3]:
            names = words
            continue
        row = dict(zip(names, words, strict=False))
        if row.get("filesystemName") != mount.source.rpartition("/")[2]:
            continue
        kind, name = row.get("quotaType", "").lower(), row.get("filesetname") or row.get("name")
        owner = "you" if kind == "usr" else f"{kind} {name}"
        limit = _number(row, "blockQuota") or _number(row, "blockLimit")
        most = _number(row, "filesQuota") or _number(row, "filesLimit")
        yield Quota(
            owner,
            _number(row, "blockUsage") * 1024,
            limit * 1024 or None,
            _number(row, "filesUsage"),
            most or None,
        )


def _number(row: dict[str, str], name: str) -> int:
    text = row.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() else 0


def _answer(*command: str) -> str | Unknown:
    try:
        ended = bounded(command, _PATIENCE_S, {**os.environ, "LC_ALL": "C"})
    except SchedulerUnavailable as error:
        return Unknown(str(error))
    if ended.returncode and not ended.stdout:
        said = ended.stderr.strip().splitlines()
        return Unknown(f"{command[0]}: {said[-1] if said else f'exit code {ended.returncode}'}")
    return ended.stdout
