"""Checkpoint folders and log lines as Megatron-LM writes them (the demo trainer does the same).

Source: Megatron-LM of August 2026, megatron/training/{checkpointing,training}.py.
"""

import math
import re

from autoexp.backends.base import Progress
from autoexp.backends.layout import Layout

PROGRESS_MARK = b"iteration"
"""In every iteration line, and in few others: a search in memory before a regular expression."""
TRACKER = "latest_checkpointed_iteration.txt"
_FOLDER = re.compile(r"iter_(?P<iteration>\d{7,})")

# Shards, then `.metadata`, then `metadata.json`, and the tracker last: a folder above the tracker
# is still being written, or is torn.
TORCH_DIST = Layout(
    name=_FOLDER, must_exist=(".metadata",), must_parse=("metadata.json",), tracker=TRACKER
)
# The legacy format tells of a folder nothing but that the tracker has come this far.
TORCH = Layout(name=_FOLDER, must_exist=("*",), tracker=TRACKER)

_ITERATION = re.compile(rb"\biteration\s+(\d+)/\s*(\d+)\s*\|")
_LOSS = re.compile(rb"\|\s*lm loss:\s*([-+0-9.eE]+|nan|inf)\s*\|")
_LEARNING_RATE = re.compile(rb"\|\s*learning rate:\s*([-+0-9.eE]+)\s*\|")
_ELAPSED = re.compile(rb"\|\s*elapsed time per iteration \(ms\):\s*([0-9.]+)\s*\|")


def folder_name(iteration: int) -> str:
    """`iter_0001000` for 1000."""
    return f"iter_{iteration:07d}"


def progress(line: bytes) -> Progress | None:
    """Read an iteration line; the loss is None where Megatron left it out (a NaN)."""
    match = _ITERATION.search(line)
    if match is None:
        return None
    milliseconds = number(_ELAPSED, line)
    return Progress(
        iteration=int(match[1]),
        target=int(match[2]),
        loss=number(_LOSS, line),
        learning_rate=number(_LEARNING_RATE, line),
        seconds_per_iteration=None if milliseconds is None else milliseconds / 1000,
    )


def number(pattern: re.Pattern[bytes], line: bytes) -> float | None:
    """The first group of `pattern` in `line` as a finite number; None where there is none."""
    match = pattern.search(line)
    try:
        value = float(match[1]) if match else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None
