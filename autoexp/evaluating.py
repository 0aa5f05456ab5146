"""An evaluation on its own: a session of one command about a checkpoint that is on disk already."""

import sys
from collections.abc import Sequence
from pathlib import Path

from autoexp.branching import find_checkpoint
from autoexp.compose import Composed
from autoexp.creation import create, new_id
from autoexp.errors import BadInput
from autoexp.experiment import Experiment, Start
from autoexp.jobs import JobSpec, Kind
from autoexp.provenance import Provenance
from autoexp.rules.templates import fill, refuse_unknown

_NAMES = ("checkpoint_path", "checkpoint_iteration", "output_dir", "python")


def create_evaluation(
    composed: Composed,
    root: Path,
    checkpoint: Path,
    command: Sequence[str],
    scores: str | None = None,
    *,
    provenance: Provenance | None = None,
    flow_run_id: str | None = None,
) -> Path:
    """Create a session whose only job runs `command` about `checkpoint`; returns its directory.

    `composed` is the experiment that the checkpoint is of, and says where the job runs. The command
    may name `{checkpoint_path}`, `{checkpoint_iteration}`, `{output_dir}` and `{python}`.
    `scores` is a JSON file of numbers that the command writes in its output directory.

    Raises BadInput when there is no complete checkpoint, or a name stands for nothing.
    """
    experiment = composed.experiment
    found = find_checkpoint(checkpoint.absolute(), experiment)
    try:
        refuse_unknown(iter(command), _NAMES)
    except ValueError as error:
        raise BadInput(f"command: {error}") from error
    if not command:
        raise BadInput("command: what is to be run? Give its words, an argument each")
    name = f"{experiment.project.name}-eval{found.iteration}"

    return create(
        composed,
        root,
        session_id=new_id(name),
        provenance=provenance,
        flow_run_id=flow_run_id,
        jobs=lambda outputs: (_job(experiment, found, outputs / name, command, scores),),
    )


def _job(
    experiment: Experiment, found: Start, output: Path, command: Sequence[str], scores: str | None
) -> JobSpec:
    """The evaluation; it writes in `output`, whose last part is its name."""
    values = {
        "checkpoint_path": found.path,
        "checkpoint_iteration": str(found.iteration),
        "output_dir": str(output),
        "python": sys.executable,
    }
    return JobSpec(
        name=output.name,
        kind=Kind.EVALUATE,
        backend=experiment.backend,
        machine=experiment.slurm,
        container=experiment.container,
        command=tuple(fill(text, values) for text in command),
        output_dir=str(output),
        save_dir=str(output / "checkpoints"),
        scores=str(output / scores) if scores else None,
    )
