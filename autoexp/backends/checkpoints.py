"""Checkpoint folders of all trainers: finding complete ones, pinning, moving torn ones."""

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from autoexp.backends import pins
from autoexp.backends.pins import remove
from autoexp.backends.protocol import CheckpointScan, FoundCheckpoint, PinChanges
from autoexp.errors import SessionError
from autoexp.storage import atomic

# No trainer mistakes these for checkpoints: torchtitan looks for `step-N` anywhere in a name.
_SEED = ".autoexp-seed"
_TORN = ".autoexp-torn"
_TORN_NAME = re.compile(re.escape(_TORN) + r"-(\d{1,18})")
_MOST_TORN = 3  # of a job: a training that is killed in its saves again and again fills no disk
_ASIDE = "set-aside"
_LARGEST_TRACKER = 4096
_TRIES = 3
"""Number of tries to pin a checkpoint that changes meanwhile."""
# A tracker that is written in place is empty meanwhile; one that stays so was cut by a crash.
_BEING_WRITTEN_S = 60.0
_LARGEST_JSON = 64 * 2**20
_LARGEST_INDEX = 256 * 2**20
# As torch.distributed.checkpoint names shards (filesystem.py, DEFAULT_SUFFIX).
_SHARD = re.compile(rb"__\d+_\d+\.distcp")
# What Megatron's own converters write for a model without an iteration (checkpointing.py).
_RELEASE = b"release"


class Tracker(NamedTuple):
    """The content of a tracker file."""

    iteration: int | None = None
    is_readable: bool = True
    """False: it exists without an iteration, as after a power cut: it is empty or NULs."""
    is_being_written: bool = False
    """True if it may be readable in a moment."""


@dataclass(frozen=True)
class Layout:
    """The names of a trainer's checkpoints, and how a complete one is recognized."""

    name: re.Pattern[str]
    """Matches the whole name of a checkpoint; its group `iteration` is the number."""
    must_exist: tuple[str, ...] = ()
    """Patterns of files inside a checkpoint, each of which has to match one."""
    must_not_exist: tuple[str, ...] = ()
    """Patterns that must match nothing; `{name}` stands for the checkpoint, beside which they lie
    when they begin with `../`."""
    must_parse: tuple[str, ...] = ()
    """Files inside that have to be valid JSON."""
    index: str | None = None
    """A file inside that names all shards, as torch's `.metadata`: each of them has to be there."""
    tracker: str | None = None
    """A file in the root that names the newest complete iteration; it is written last."""
    overwritten: str | None = None
    """The file of which the checkpoints are copies, if each save overwrites one."""
    renames: bool = False
    """True if the trainer writes every file under another name and renames it, so that files are
    replaced and never changed. Only then are checkpoints pinned by hard links: whatever is opened
    for writing is changed under all of its names."""

    def watched(self, root: Path) -> tuple[Path, ...]:
        """Paths whose stat changes when a checkpoint may have become complete."""
        return (root if self.tracker is None else root / self.tracker,)

    def scan(self, root: Path) -> CheckpointScan:
        """Find the complete checkpoints in `root`, by iteration."""
        tracker = self._tracker(root)
        newest = tracker.iteration
        if tracker.is_being_written:
            return CheckpointScan([], unfinished=True)
        if self.tracker is not None and newest is None and tracker.is_readable:
            return CheckpointScan([])
        complete: list[FoundCheckpoint] = []
        torn: list[FoundCheckpoint] = []
        for found in self._candidates(root):
            if newest is not None and found.iteration > newest:
                continue
            is_complete = self._is_known_complete(found.path, tracker)
            (complete if is_complete else torn).append(found)
        last = max((found.iteration for found in complete), default=-1)
        # One that is newer than all complete ones may be in progress: files inside it change,
        # and no watched path does.
        unfinished = any(found.iteration > last for found in torn)
        problem = None
        if self.tracker is not None and not tracker.is_readable and (complete or torn):
            say = f"write {last} there" if complete else "find out which checkpoint is complete"
            problem = f"{root / self.tracker} names no iteration; {say} before the job is restarted"
        return CheckpointScan(sorted(complete), unfinished, problem=problem)

    def tracked(self, root: Path) -> int | None:
        """The tracker's iteration; None when it is missing or unreadable."""
        return self._tracker(root).iteration

    def _tracker(self, root: Path) -> Tracker:
        if self.tracker is None:
            return Tracker()
        path = root / self.tracker
        try:
            text = atomic.read(path, _LARGEST_TRACKER).strip()
        except FileNotFoundError:
            return Tracker()
        except atomic.WrongFile:
            return Tracker(is_readable=False)
        if text == _RELEASE:
            return Tracker()
        if text.isdigit() and len(text) < 16:
            return Tracker(int(text))
        return Tracker(None, False, not text and _is_young(path))

    def _is_known_complete(self, path: Path, tracker: Tracker) -> bool:
        """True if a checkpoint is certainly complete; without a tracker by its own files alone."""
        return (tracker.is_readable or self._tells_by_itself) and self.is_complete(path)

    @property
    def _tells_by_itself(self) -> bool:
        """True if a checkpoint's own files say that it is complete, not only the tracker."""
        some = any(pattern != "*" for pattern in self.must_exist)
        return some or bool(self.must_not_exist or self.must_parse or self.renames)

    def is_complete(self, path: Path) -> bool:
        """True if a checkpoint is complete, judged by its files."""
        for pattern in self.must_not_exist:
            if _matches(path, pattern.replace("{name}", path.name)):
                return False
        if not all(_matches(path, pattern) for pattern in self.must_exist):
            return False
        if not all(_parses(path / name) for name in self.must_parse):
            return False
        return self.index is None or shards_are_there(path, self.index) is not False

    def seed(self, checkpoint: FoundCheckpoint, root: Path) -> int:
        """Give a branch its own start, `checkpoint`, and a tracker that names it.

        Its data stay when the parent's retention deletes its folder, and writing into them changes
        nothing of the parent's. Returns how many bytes were copied: none where links are safe, or
        the filesystem shares blocks. Repeating it after a kill does no harm, and a branch that has
        moved on is left alone. Raises SessionError where the checkpoint is changed or deleted
        meanwhile: nothing begins from a part of one.
        """
        if self._has_begun(root, checkpoint.iteration):
            return 0
        root.mkdir(parents=True, exist_ok=True)
        pinned, copied = root / checkpoint.path.name, 0
        if not pinned.exists():
            copied = self._pin(checkpoint.path, root)
            (root / _SEED).rename(pinned)
            atomic.sync_directory(root)
        if self.tracker is not None:
            atomic.write(root / self.tracker, str(checkpoint.iteration))
        return copied

    def _pin(self, checkpoint: Path, root: Path) -> int:
        """Pin a whole checkpoint in `root`, or nothing; returns the number of bytes copied.

        One that changes meanwhile is retried. One that loses files is being deleted, and for
        the rest it is unknown if it is complete.
        """
        reason = "it is no longer complete"
        try:
            first = pins.contents(checkpoint)
            for _ in range(_TRIES):
                before = pins.contents(checkpoint)
                if not (first.keys() <= before.keys() and self.is_complete(checkpoint)):
                    break
                try:
                    return self._pin_as(before, checkpoint, root)
                except (pins.Changed, FileNotFoundError) as error:
                    reason = str(error)
        except pins.Changed as error:
            reason = str(error)
        remove(root / _SEED)
        raise SessionError(
            f"{checkpoint}: changed or deleted while it was pinned ({reason}), and nothing begins "
            "from a part of it; have the trainer keep more checkpoints"
        )

    def _pin_as(self, before: Mapping[str, int], checkpoint: Path, root: Path) -> int:
        unfinished = root / _SEED
        remove(unfinished)
        with pins.held(checkpoint, root) as source:
            pins.compare(before, source)
            pins.compare(before, checkpoint)
            pin = pins.Pin.of(checkpoint, source)
            copied = pins.copy(source, unfinished, link=self.renames)
            if source == checkpoint:
                pins.compare(before, checkpoint)
        pins.compare(before, unfinished)
        pin.write(root)
        return copied

    def _has_begun(self, root: Path, first: int) -> bool:
        """True if a branch that begins at `first` has its start, and may have advanced."""
        tracker = self._tracker(root)
        if self.tracker is None:
            return bool(self.scan(root).complete)
        if tracker.is_readable:
            return tracker.iteration is not None
        # Unreadable: a trainer that has advanced left more than the seed.
        return any(found.iteration > first for found in self._candidates(root))

    def pin_changes(self, root: Path) -> PinChanges:
        """Files changed since they were pinned; none where no pin is known."""
        pin = pins.Pin.read(root)
        return PinChanges() if pin is None else pin.changes(root)

    def clear_torn(self, root: Path) -> list[str]:
        """Move incomplete checkpoints aside: for trainers that would resume from them.

        The last ones stay there, to be looked at. An unreadable tracker marks none as torn.
        """
        moved = []
        tracker = self._tracker(root)
        has_tracker = self.tracker is not None and tracker.is_readable
        for found in list(self._candidates(root)):
            beyond = has_tracker and found.iteration > (tracker.iteration or 0)
            if beyond or not self.is_complete(found.path):
                aside = root / f"{_TORN}-{found.iteration}"
                remove(aside)
                found.path.rename(aside)
                moved.append(found.path.name)
        if moved:
            names = ((_TORN_NAME.fullmatch(path.name), path) for path in list(root.iterdir()))
            there = sorted((int(name[1]), path) for name, path in names if name is not None)
            for _, old in there[:-_MOST_TORN]:
                remove(old)
        return moved

    def set_aside(self, root: Path, after: int) -> list[str]:
        """Make training resume at or before `after`: later checkpoints are renamed, never removed.

        What lies before the checkpoint that was pinned here is another training's, and goes too.
        A tracker goes first: whatever is killed in between, no folder that it names is missing, and
        a second run finds the rest. Raises SessionError when nothing is left to resume from.
        """
        first = self._restored(root)
        tracker = self._tracker(root)
        newest = tracker.iteration
        # Not `scan`: a training that began before the pinned one has set the tracker back.
        has_tracker = self.tracker is not None and tracker.is_readable
        last = min(after, max(first, newest or 0)) if has_tracker else after
        kept = [
            found.iteration
            for found in self._candidates(root)
            if first <= found.iteration <= last and self._is_known_complete(found.path, tracker)
        ]
        if not kept:
            raise SessionError(f"{root}: no complete checkpoint at or before iteration {after}")
        if self.tracker is not None and (newest is None or not first <= newest <= after):
            atomic.write(root / self.tracker, str(max(kept)))
        renamed = []
        if self.overwritten is not None and (root / self.overwritten).exists():
            # It would be the newest again; the job puts the newest copy in its place.
            file = root / self.overwritten
            file.rename(_unused(file.with_name(f"{_ASIDE}-{file.name}")))
            renamed.append(file.name)
            atomic.step()
        for found in sorted(self._candidates(root)):
            if not first <= found.iteration <= after:
                atomic.step()
                _set_aside(found.path, found.iteration)
                renamed.append(found.path.name)
        atomic.sync_directory(root)
        return renamed

    def _restored(self, root: Path) -> int:
        """The iteration that was pinned here, with its checkpoint restored; 0 without one."""
        pin = pins.Pin.read(root)
        match = None if pin is None else self.name.fullmatch(Path(pin.path).name)
        if pin is None or match is None:
            return 0
        iteration, origin = int(match["iteration"]), Path(pin.path)
        seed = root / origin.name
        changed = pin.changes(root).seed
        if changed:
            if pin.is_whole(origin):
                self._pin(origin, root)
            if not pin.is_whole(root / _SEED):
                raise SessionError(
                    f"{seed} was written over ({', '.join(changed[:3])}), and {origin} is not what "
                    "it was either: there is nothing to begin from"
                )
            atomic.step()
            _set_aside(seed, iteration)
            atomic.step()
        if changed or (not seed.exists() and (root / _SEED).exists()):
            (root / _SEED).rename(seed)
        return iteration

    def _candidates(self, root: Path) -> Iterator[FoundCheckpoint]:
        """Entries named like a checkpoint; links do not belong to this job."""
        try:
            with os.scandir(root) as entries:
                for entry in entries:
                    match = self.name.fullmatch(entry.name)
                    if match is not None and not entry.is_symlink():
                        yield FoundCheckpoint(int(match["iteration"]), Path(entry.path))
        except FileNotFoundError:
            return


def shards_are_there(path: Path, index: str) -> bool | None:
    """True if every shard that a checkpoint's index names is there; None: that cannot be told.

    The index is a pickle, which is searched for names and never loaded.
    """
    try:
        state = (path / index).stat()
        return _shards_are_there(path, index, state.st_mtime_ns, state.st_size)
    except _Missing:
        return False
    except (OSError, _Unclear):
        return None


class _Missing(Exception):
    """A shard is missing."""


class _Unclear(Exception):
    """Its index names no shards, or those of another folder."""


@lru_cache(maxsize=4096)
def _shards_are_there(path: Path, index: str, changed_ns: int, size: int) -> bool:
    """True; raises otherwise, so that only a whole checkpoint is remembered."""
    del changed_ns
    if size > _LARGEST_INDEX:
        raise _Unclear
    named = {name.decode() for name in _SHARD.findall((path / index).read_bytes())}
    with os.scandir(path) as entries:
        there = {entry.name for entry in entries if entry.name in named}
    if not there:
        raise _Unclear
    if named - there:
        raise _Missing
    return True


def _set_aside(path: Path, iteration: int) -> None:
    # Not the name itself: some trainers look for it anywhere in a folder's name.
    path.rename(_unused(path.with_name(f"{_ASIDE}-{iteration}")))


def _unused(path: Path) -> Path:
    """``path`, or the first free path with a number appended."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}.{number}")
    return free


def _matches(path: Path, pattern: str) -> bool:
    if pattern.startswith("../"):
        return next(path.parent.glob(pattern[3:]), None) is not None
    return next(path.glob(pattern), None) is not None


def _is_young(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime < _BEING_WRITTEN_S
    except FileNotFoundError:
        return True  # it is being replaced


def _parses(path: Path) -> bool:
    try:
        json.loads(atomic.read(path, _LARGEST_JSON))
    except (FileNotFoundError, atomic.WrongFile, ValueError, RecursionError):
        return False
    return True
