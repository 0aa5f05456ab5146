"""A standalone evaluation: a session of one command on an existing checkpoint."""

import sys
from collections.abc import Sequence
from pathlib import Path

from autoexp.config.experiment import Experiment
from autoexp.errors import BadInput
from autoexp.jobs.budget import estimate
from autoexp.jobs.spec import JobSpec
from autoexp.names import check_job
from autoexp.planning.standalone import find_checkpoint
from autoexp.states import Kind
from autoexp.templates import fill, refuse_unknown


def evaluation(
    experiment: Experiment,
    outputs: Path,
    checkpoint: Path,
    command: Sequence[str],
    scores: str | None = None,
    minutes: float | None = None,
) -> JobSpec:
    """The job that runs `command` on `checkpoint` and writes in a directory below `outputs`.

    `experiment` is the one that the checkpoint is of, and says where the job runs. The command may
    name `{checkpoint_path}`, `{checkpoint_iteration}`, `{output_dir}` and `{python}`. `scores` is a
    JSON file of numbers that it writes in its output directory, `minutes` how long it takes.

    Raises BadInput when there is no complete checkpoint, or a name stands for nothing.
    """
    found = find_checkpoint(checkpoint.absolute(), experiment)
    name = f"{experiment.project.name}-eval{found.iteration}"
    output = outputs / name
    values = {
        "checkpoint_path": found.path,
        "checkpoint_iteration": str(found.iteration),
        "output_dir": str(output),
        "python": sys.executable,
    }
    if not command:
        raise BadInput("command: empty; give the command as a list of arguments")
    try:
        refuse_unknown(iter(command), values)
    except ValueError as error:
        raise BadInput(f"command: {error}") from error
    spec = JobSpec(
        name=check_job(name),
        kind=Kind.EVALUATE,
        backend=experiment.backend,
        machine=experiment.slurm,
        container=experiment.container,
        command=tuple(fill(text, values) for text in command),
        output_dir=str(output),
        save_dir=str(output / "checkpoints"),
        reads=(found.path,),
        scores=str(output / scores) if scores else None,
    )
    return spec.model_copy(update={"planned": estimate(spec, experiment.budget, minutes)})
