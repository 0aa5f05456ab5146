"""What a container's runtime is told on the node: the variables of a job, and its end.

A copy of this file lies beside the payload of such an attempt, so the standard library alone.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

# Variables that SLURM, a launcher or the payload set for a process of the job.
_OF_THE_JOB = re.compile(
    r"(AUTOEXP|SLURM|SLURMD|PET|PMI|PMI2|PMIX|MASTER|TORCHELASTIC)_\w+"
    r"|RANK|LOCAL_RANK|WORLD_SIZE|(CUDA|ROCR|HIP)_VISIBLE_DEVICES|GPU_DEVICE_ORDINAL"
)
_STOP_PATIENCE_S = 30.0


def stop(command: Sequence[str]) -> bool:
    """End the container that a killed client has left with its daemon; True if there was one."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        quiet = subprocess.DEVNULL
        ended = subprocess.run(command, timeout=_STOP_PATIENCE_S, stdout=quiet, stderr=quiet)
        return ended.returncode == 0
    return False


def for_runtime(spec: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a container's runtime: what the job needs is set inside by name.

    Else options of the runtime would keep it out, or the image's own values would win.
    """
    inside = spec["inside"]
    known = {**inside["defaults"], **environ}
    unreadable = set(inside["unreadable"])
    named = {*inside["names"], *inside["defaults"]}
    handed = {
        prefix + name: value
        for name, value in known.items()
        if (name in named or _OF_THE_JOB.fullmatch(name)) and not unreadable & set(value)
        for prefix in inside["prefixes"]
    }
    kept = {name: value for name, value in environ.items() if name not in inside["without"]}
    # What the configuration sets inside alone is there already, under the very names.
    own = {name: value for name, value in kept.items() if name in spec["environment"]}
    # A plugin of SLURM's takes the job's environment in as it is.
    defaults = {} if inside["prefixes"] else inside["defaults"]
    return {**inside["own"], **defaults, **kept, **handed, **own}
