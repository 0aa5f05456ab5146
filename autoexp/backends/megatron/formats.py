"""Checkpoint folders and log lines of Megatron-LM (and of the demo trainer).

Source: Megatron-LM of August 2026, megatron/training/{checkpointing,training}.py.
"""

import math
import re

from autoexp.backends.checkpoints import Layout
from autoexp.backends.protocol import Progress, Unread, Validation
from autoexp.logs.lines import without_escapes
from autoexp.logs.numbers import number, whole

PROGRESS_MARK = b"iteration"
"""In every iteration line, and in few others: a search in memory before a regular expression."""
LOGS = frozenset({"loss", "learning_rate", "seconds", "grad_norm", "validation_loss"})
"""Numbers in its lines, and `tflops` where it is told to measure them."""
TRACKER = "latest_checkpointed_iteration.txt"
_FOLDER = re.compile(r"iter_(?P<iteration>\d{7,})")

# No `renames`: shards are opened for writing under their names, in a folder that may be there.
# Source: megatron/core/dist_checkpointing/strategies/filesystem_async.py, write_preloaded_data.
# Shards, then `.metadata`, then `metadata.json`, and the tracker last: a folder above the tracker
# is still being written, or is torn.
TORCH_DIST = Layout(
    name=_FOLDER,
    must_exist=(".metadata",),
    must_parse=("metadata.json",),
    index=".metadata",
    tracker=TRACKER,
)
# In the legacy format only the tracker says that a folder is complete.
TORCH = Layout(name=_FOLDER, must_exist=("*",), tracker=TRACKER)

# Without `\b` before it, `re` looks for the word as fast as memory allows.
_ITERATION = re.compile(rb"iteration\s+(\d+)/\s*(\d+)\s*\|")
# `lm_loss` is what its multimodal examples print.
_LOSS = re.compile(rb"\|\s*lm[ _]loss:\s*([-+0-9.eE]+)\s*\|")
_LEARNING_RATE = re.compile(rb"\|\s*learning rate:\s*([-+0-9.eE]+)\s*\|")
_ELAPSED = re.compile(rb"\|\s*elapsed time per iteration \(ms\):\s*([0-9.,]+)\s*\|")

_GRAD_NORM = re.compile(rb"\|\s*grad norm:\s*([-+0-9.eE]+)\s*\|")
_TFLOPS = re.compile(rb"\|\s*throughput per GPU \(TFLOP/s/GPU\):\s*([0-9.,]+)\s*\|")
# Source: megatron/training/training.py, evaluate_and_print_results.
_VALIDATION = re.compile(
    rb"\bvalidation(?:-([\w.-]{1,40}))? loss at iteration (\d{1,18})(?: on (\w{1,40}) set)? \|"
    rb"(?:[^|]{0,200}\|){0,20}? ?lm[ _]loss value: ([-+0-9.eE]{1,30})"
)
_VALIDATION_MARK = b" loss at iteration "

# Source: megatron/training/checkpointing.py, load_checkpoint and _load_base_checkpoint.
_LOADED = re.compile(rb"\bsuccessfully loaded checkpoint from .* at iteration\s+(\d{1,18})\s*$")
_NOTHING_THERE = re.compile(rb"\bcould not find the metadata file .*" + TRACKER.encode())


def progress(line: bytes) -> Progress | Unread | None:
    """Read an iteration line; the loss is None where Megatron left it out (a NaN).

    Of two that ranks have written into one line, it is the last one.
    """
    line = without_escapes(line)
    match = _ITERATION.search(line)
    while match is not None and (later := _ITERATION.search(line, match.end())) is not None:
        match = later
    if match is None:
        return None
    iteration = whole(match[1])
    if iteration is None:
        return Unread(f"an iteration of {len(match[1])} digits")
    start = match.start()
    milliseconds = _value(_ELAPSED, line, start)
    return Progress(
        iteration,
        whole(match[2]),
        _value(_LOSS, line, start),
        _value(_LEARNING_RATE, line, start),
        None if milliseconds is None else milliseconds / 1000,
        grad_norm=_value(_GRAD_NORM, line, start),
        tflops=_value(_TFLOPS, line, start),
    )


def validation(line: bytes) -> Validation | None:
    """Read a validation's line; of several sets each has its own."""
    if _VALIDATION_MARK not in line:
        return None
    match = _VALIDATION.search(without_escapes(line))
    loss = None if match is None else number(match[4])
    if match is None or loss is None or not math.isfinite(loss):
        return None
    name = match[1] or match[3] or b"validation"
    return Validation(int(match[2]), loss, name.decode("ascii", "replace"))


def read_start(line: bytes, earlier: int | None) -> int | None:
    """The iteration of the checkpoint that was loaded; 0 where there was none."""
    del earlier
    if match := _LOADED.search(line):
        return int(match[1])
    return 0 if _NOTHING_THERE.search(line) else None


def _value(pattern: re.Pattern[bytes], line: bytes, start: int) -> float | None:
    """The first group of `pattern` from a place on as a finite number; None where there is none."""
    match = pattern.search(line, start)
    if match is None:
        return None
    value = number(match[1])
    return value if value is None or math.isfinite(value) else None
