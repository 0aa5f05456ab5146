"""What all trainers' checkpoint folders share: finding complete ones, pinning, moving torn ones."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from autoexp import durable
from autoexp.backends import pins
from autoexp.backends.base import CheckpointScan, FoundCheckpoint, PinChanges
from autoexp.backends.pins import remove
from autoexp.errors import SessionError

# No trainer takes these for checkpoints: torchtitan looks for `step-N` anywhere in a name.
_SEED = ".autoexp-seed"
_TORN = ".autoexp-torn"
_ASIDE = "set-aside"


@dataclass(frozen=True)
class Layout:
    """How a trainer names its checkpoints, and what makes one complete."""

    name: re.Pattern[str]
    """Matches the whole name of a checkpoint; its group `iteration` is the number."""
    must_exist: tuple[str, ...] = ()
    """Patterns of files inside a checkpoint, each of which has to match one."""
    must_not_exist: tuple[str, ...] = ()
    """Patterns that must match nothing; `{name}` stands for the checkpoint, beside which they lie
    when they begin with `../`."""
    must_parse: tuple[str, ...] = ()
    """Files inside that have to be whole JSON."""
    tracker: str | None = None
    """A file in the root that names the newest complete iteration; it is written last."""
    renames: bool = False
    """Whether the trainer writes every file aside and renames it, so that what has the name is
    replaced and never changed. Only then are checkpoints pinned by hard links: whatever is opened
    for writing is changed under all of its names."""

    def watched(self, root: Path) -> tuple[Path, ...]:
        """Paths whose stat changes when a checkpoint may have become complete."""
        return (root if self.tracker is None else root / self.tracker,)

    def scan(self, root: Path) -> CheckpointScan:
        """The complete checkpoints in `root`, by iteration."""
        newest = self.tracked(root)
        if self.tracker is not None and newest is None:
            return CheckpointScan([])
        complete: list[FoundCheckpoint] = []
        torn: list[FoundCheckpoint] = []
        for found in self._candidates(root):
            if newest is not None and found.iteration > newest:
                continue
            (complete if self.is_complete(found.path) else torn).append(found)
        last = max((found.iteration for found in complete), default=-1)
        # One that is newer than all complete ones may be in the making: files inside it change,
        # and nothing that is watched does.
        unfinished = any(found.iteration > last for found in torn)
        return CheckpointScan(sorted(complete), unfinished)

    def tracked(self, root: Path) -> int | None:
        """The tracker's iteration; None when it is missing or, written in place, still empty."""
        if self.tracker is None:
            return None
        try:
            text = (root / self.tracker).read_bytes().strip()
        except FileNotFoundError:
            return None
        return int(text) if text.isdigit() and len(text) < 16 else None

    def is_complete(self, path: Path) -> bool:
        """Whether a checkpoint is whole, as far as its files say."""
        for pattern in self.must_not_exist:
            if _matches(path, pattern.replace("{name}", path.name)):
                return False
        if not all(_matches(path, pattern) for pattern in self.must_exist):
            return False
        return all(_parses(path / name) for name in self.must_parse)

    def seed(self, checkpoint: FoundCheckpoint, root: Path) -> int:
        """Give a branch its own start, `checkpoint`, and a tracker that names it.

        Its data stay when the parent's retention deletes its folder, and writing into them changes
        nothing of the parent's. Returns how many bytes were copied: none where links are safe, or
        the filesystem shares blocks. Repeating it after a kill does no harm, and a branch that has
        moved on is left alone.
        """
        begun = self.tracked(root) is not None if self.tracker else bool(self.scan(root).complete)
        if begun:
            return 0
        root.mkdir(parents=True, exist_ok=True)
        pinned, copied = root / checkpoint.path.name, 0
        if not pinned.exists():
            unfinished = root / _SEED
            remove(unfinished)
            with pins.held(checkpoint.path, root) as source:
                pin = pins.Pin.of(checkpoint.path, source)
                copied = pins.copy(source, unfinished, link=self.renames)
            pin.write(root)
            unfinished.rename(pinned)
            durable.sync_directory(root)
        if self.tracker is not None:
            durable.write(root / self.tracker, str(checkpoint.iteration))
        return copied

    def pin_changes(self, root: Path) -> PinChanges:
        """What has other contents than when it was pinned; nothing where no pin is known."""
        pin = pins.Pin.read(root)
        return PinChanges() if pin is None else pin.changes(root)

    def clear_torn(self, root: Path) -> list[str]:
        """Move aside what is not complete: for trainers that would resume from it."""
        moved = []
        newest = self.tracked(root)
        for found in list(self._candidates(root)):
            beyond = self.tracker is not None and found.iteration > (newest or 0)
            if beyond or not self.is_complete(found.path):
                aside = root / f"{_TORN}-{found.iteration}"
                remove(aside)
                found.path.rename(aside)
                moved.append(found.path.name)
        return moved

    def set_aside(self, root: Path, after: int) -> list[str]:
        """Have training resume at or before `after`: what lies behind is renamed, never removed.

        What lies before the checkpoint that was pinned here is another training's, and goes too.
        A tracker goes first: whatever is killed in between, no folder that it names is missing, and
        a second run finds the rest. Raises SessionError when nothing is left to resume from.
        """
        first = self._restored(root)
        newest = self.tracked(root)
        # Not `scan`: a training that began before the pinned one has moved the tracker back.
        last = after if self.tracker is None else min(after, max(first, newest or 0))
        kept = [
            found.iteration
            for found in self._candidates(root)
            if first <= found.iteration <= last and self.is_complete(found.path)
        ]
        if not kept:
            raise SessionError(f"{root}: no complete checkpoint at or before iteration {after}")
        if self.tracker is not None and (newest is None or not first <= newest <= after):
            durable.write(root / self.tracker, str(max(kept)))
        renamed = []
        for found in sorted(self._candidates(root)):
            if not first <= found.iteration <= after:
                durable.step()
                _set_aside(found.path, found.iteration)
                renamed.append(found.path.name)
        durable.sync_directory(root)
        return renamed

    def _restored(self, root: Path) -> int:
        """The iteration that was pinned here, once its checkpoint is what it was; 0 without one."""
        pin = pins.Pin.read(root)
        match = None if pin is None else self.name.fullmatch(Path(pin.path).name)
        if pin is None or match is None:
            return 0
        iteration, origin = int(match["iteration"]), Path(pin.path)
        seed = root / origin.name
        changed = pin.changes(root).seed
        if changed:
            if not pin.is_whole(origin):
                raise SessionError(
                    f"{seed} was written over ({', '.join(changed[:3])}), and {origin} is not what "
                    "it was either: there is nothing to begin from"
                )
            remove(root / _SEED)
            pins.copy(origin, root / _SEED, link=self.renames)
            durable.step()
            _set_aside(seed, iteration)
            durable.step()
        if changed or (not seed.exists() and (root / _SEED).exists()):
            (root / _SEED).rename(seed)
        return iteration

    def _candidates(self, root: Path) -> Iterator[FoundCheckpoint]:
        """What is named like a checkpoint; links are none of this job's."""
        try:
            with os.scandir(root) as entries:
                for entry in entries:
                    match = self.name.fullmatch(entry.name)
                    if match is not None and not entry.is_symlink():
                        yield FoundCheckpoint(int(match["iteration"]), Path(entry.path))
        except FileNotFoundError:
            return


def _set_aside(path: Path, iteration: int) -> None:
    # Not the name itself: some trainers look for it anywhere in a folder's name.
    path.rename(_unused(path.with_name(f"{_ASIDE}-{iteration}")))


def _unused(path: Path) -> Path:
    """`path`, or with a number behind it what does not exist yet."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}.{number}")
    return free


def _matches(path: Path, pattern: str) -> bool:
    if pattern.startswith("../"):
        return next(path.parent.glob(pattern[3:]), None) is not None
    return next(path.glob(pattern), None) is not None


def _parses(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return False
    return True
