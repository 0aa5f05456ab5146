"""What a container's runtime is told of the variables of a job, on the node where it starts.

A copy of this file lies beside the payload of such an attempt, so the standard library alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Variables that SLURM, a launcher or the payload set for a process of the job.
_OF_THE_JOB = re.compile(
    r"(AUTOEXP|SLURM|SLURMD|PET|PMI|PMI2|PMIX|MASTER|TORCHELASTIC)_\w+"
    r"|RANK|LOCAL_RANK|WORLD_SIZE|(CUDA|ROCR|HIP)_VISIBLE_DEVICES|GPU_DEVICE_ORDINAL"
)
# Two characters mean something else to the shell that is built into Apptainer: mvdan/sh marks the
# end of its input and an escaped end of line by them. With one of them no variable at all is set.
_UNREADABLE = re.compile("[\x80\x81]")


def for_runtime(spec: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a container's runtime: what the job needs is set inside by name.

    Else options of the runtime would keep it out, or the image's own values would win.
    """
    inside = spec["inside"]
    known = {**inside["defaults"], **environ}
    named = {*inside["names"], *inside["defaults"]}
    handed = {
        prefix + name: value
        for name, value in known.items()
        if (name in named or _OF_THE_JOB.fullmatch(name)) and not _UNREADABLE.search(value)
        for prefix in inside["prefixes"]
    }
    kept = {name: value for name, value in environ.items() if name not in inside["without"]}
    # What the configuration sets inside alone is there already, under the very names.
    own = {name: value for name, value in kept.items() if name in spec["environment"]}
    # A plugin of SLURM's takes the job's environment in as it is.
    defaults = {} if inside["prefixes"] else inside["defaults"]
    return {**defaults, **kept, **handed, **own}
