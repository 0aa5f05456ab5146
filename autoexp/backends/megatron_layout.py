"""Checkpoint folders and log lines as Megatron-LM writes them (the demo trainer does the same).

Source: Megatron-LM of August 2026, megatron/training/{checkpointing,training}.py.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from autoexp import durable
from autoexp.backends.base import Branch, CheckpointScan, FoundCheckpoint, Progress
from autoexp.errors import SessionError

TRACKER = "latest_checkpointed_iteration.txt"
_FOLDER = re.compile(r"iter_(\d{7,})\Z")

_ITERATION = re.compile(rb"\biteration\s+(\d+)/\s*(\d+)\s*\|")
_LOSS = re.compile(rb"\|\s*lm loss:\s*([-+0-9.eE]+|nan|inf)\s*\|")
_LEARNING_RATE = re.compile(rb"\|\s*learning rate:\s*([-+0-9.eE]+)\s*\|")
_ELAPSED = re.compile(rb"\|\s*elapsed time per iteration \(ms\):\s*([0-9.]+)\s*\|")


def folder_name(iteration: int) -> str:
    """`iter_0001000` for 1000."""
    return f"iter_{iteration:07d}"


def tracked_iteration(save_dir: Path) -> int | None:
    """The tracker's iteration; None when it is missing or, written in place, still empty."""
    try:
        text = (save_dir / TRACKER).read_bytes().strip()
    except FileNotFoundError:
        return None
    return int(text) if text.isdigit() else None


def scan(save_dir: Path) -> CheckpointScan:
    """Complete checkpoints: metadata parses, and the tracker has come this far.

    The tracker is written last, so a folder above it is still being written, or is torn.
    """
    newest = tracked_iteration(save_dir)
    if newest is None:
        return CheckpointScan([])
    found, unfinished = [], False
    with os.scandir(save_dir) as entries:
        for entry in entries:
            match = _FOLDER.match(entry.name)
            if match is None or int(match[1]) > newest or not entry.is_dir():
                continue
            folder = Path(entry.path)
            if _metadata_parses(folder):
                found.append(FoundCheckpoint(int(match[1]), folder))
            else:
                # Nobody writes in this order; if a filesystem shows it so, the rest will follow.
                unfinished = unfinished or int(match[1]) == newest
    return CheckpointScan(sorted(found), unfinished)


def _metadata_parses(folder: Path) -> bool:
    try:
        json.loads((folder / "metadata.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    return True


def seed(checkpoint: FoundCheckpoint, save_dir: Path) -> None:
    """Give a branch its own start: hard links to `checkpoint` and a tracker that names it.

    Hard links keep the data when the parent's retention deletes its folder. Where the filesystem
    allows none (another device, or no permission), the files are copied. Repeating it after a kill
    does no harm, and a branch that has moved on is left alone.
    """
    if tracked_iteration(save_dir) is not None:
        return
    save_dir.mkdir(parents=True, exist_ok=True)
    pinned = save_dir / folder_name(checkpoint.iteration)
    if not pinned.exists():
        unfinished = save_dir / f".seed-{folder_name(checkpoint.iteration)}"
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(checkpoint.path, unfinished, copy_function=_link_or_copy)
        unfinished.rename(pinned)
    durable.write(save_dir / TRACKER, str(checkpoint.iteration))


def set_aside(save_dir: Path, after: int) -> list[str]:
    """Have training resume at or before `after`: move the tracker back, rename what lies behind.

    The tracker goes first: whatever is killed in between, no folder that it names is missing. A
    second run finds the rest. Raises SessionError when no checkpoint is left to resume from.
    """
    kept = [found.iteration for found in scan(save_dir).complete if found.iteration <= after]
    if not kept:
        raise SessionError(f"{save_dir}: no complete checkpoint at or before iteration {after}")
    newest = tracked_iteration(save_dir)
    if newest is None or newest > after:
        durable.write(save_dir / TRACKER, str(max(kept)))
    renamed = []
    for folder in sorted(save_dir.iterdir()):
        match = _FOLDER.match(folder.name)
        if match is None or int(match[1]) <= after:
            continue
        durable.step()
        folder.rename(_unused(save_dir / f"set-aside-{folder.name}"))
        renamed.append(folder.name)
    durable.sync_directory(save_dir)
    return renamed


def _unused(path: Path) -> Path:
    """`path`, or with a number behind it what does not exist yet."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}.{number}")
    return free


_SHAPES: dict[str, Callable[[float], float]] = {
    "minus_sqrt": lambda x: 1 - math.sqrt(x),
    "linear": lambda x: 1 - x,
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
}


def planned_rate(peak: float, branch: Branch, iteration: int) -> float | None:
    """The rate of Megatron's WSD decay; None for a shape that it is not known of here."""
    shape = _SHAPES.get(branch.shape)
    if shape is None:
        return None
    done = min(1.0, max(0.0, (iteration - branch.iteration) / branch.decay_iterations))
    return branch.min_lr + (peak - branch.min_lr) * shape(done)


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def progress(line: bytes) -> Progress | None:
    """Read an iteration line; the loss is None where Megatron left it out (a NaN)."""
    match = _ITERATION.search(line)
    if match is None:
        return None
    milliseconds = _number(_ELAPSED, line)
    return Progress(
        iteration=int(match[1]),
        target=int(match[2]),
        loss=_number(_LOSS, line),
        learning_rate=_number(_LEARNING_RATE, line),
        seconds_per_iteration=None if milliseconds is None else milliseconds / 1000,
    )


def _number(pattern: re.Pattern[bytes], line: bytes) -> float | None:
    match = pattern.search(line)
    try:
        return float(match[1]) if match else None
    except ValueError:
        return None
