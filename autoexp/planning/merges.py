"""Merges of checkpoints as jobs: which checkpoints, with which weights."""

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from autoexp.backends.decay import standard_shape
from autoexp.config.cooldowns import Merge
from autoexp.config.experiment import Experiment
from autoexp.errors import BadInput
from autoexp.jobs.budget import estimate
from autoexp.jobs.spec import JobSpec, MergeInputs
from autoexp.names import check_job
from autoexp.planning.stage_jobs import machine_with
from autoexp.states import Kind

# Not the time limit of a training, with which it would wait for days.
_ONE_NODE = {"nodes": 1, "gpus_per_node": 0, "tasks_per_node": 1, "time_limit_min": 120.0}


class MergeJobs(NamedTuple):
    """The jobs of an experiment's merges."""

    jobs: list[JobSpec]
    notes: list[str]


def merge_jobs(experiment: Experiment, output_root: Path, taken: set[str]) -> MergeJobs:
    """The jobs of all merges; raises BadInput with the reason for one that cannot be."""
    found, refused = MergeJobs([], []), []
    for index, merge in enumerate(experiment.merges):
        where = f"merges.{index}"
        if not experiment.trainer.merge_command([Path("a"), Path("b")], [0.5, 0.5], Path("c")):
            kind = experiment.backend.kind
            refused.append(f"{where}: {kind} has no merger; give `backend.merger`, a command")
            continue
        if experiment.start is not None:
            refused.append(f"{where}: there is one checkpoint to start from, and no others")
            continue
        for wanted in merge.at:
            try:
                job = _job(merge, wanted, experiment, output_root, where)
            except BadInput as error:
                refused.append(f"{where}: {wanted}: {error}")
                continue
            assert job.merge is not None
            if job.name in taken:
                refused.append(f"{where}: a second job named {job.name}; give it a `name`")
                continue
            taken.add(job.name)
            if job.merge.at != wanted:
                found.notes.append(
                    f"{where}: {wanted}: the last checkpoint is {job.merge.at} "
                    f"(save_interval {experiment.trainer.save_interval})"
                )
            found.jobs.append(job)
    if refused:
        raise BadInput("\n".join(refused))
    return found


def weights_of(shape: str, count: int) -> tuple[float, ...]:
    """The weights of `count` checkpoints, oldest first, which add up to 1.

    A step between two checkpoints counts as much as a decay over all of them would have scaled it
    in its middle; that of a checkpoint is the difference to the next step (arXiv 2507.17634).
    """
    if shape == "equal":
        return (1 / count,) * count
    curve, steps = standard_shape(shape), count - 1
    scaled = [1.0, *(curve((step + 0.5) / steps) for step in range(steps)), 0.0]
    return tuple(before - after for before, after in pairwise(scaled))


def _job(merge: Merge, wanted: int, experiment: Experiment, root: Path, where: str) -> JobSpec:
    trainer = experiment.trainer
    interval = trainer.save_interval
    at = wanted // interval * interval
    if wanted > trainer.train_iters:
        raise BadInput(f"beyond the trunk's target of {trainer.train_iters} iterations")
    first = max(interval, -(-(at - merge.last) // interval) * interval)
    iterations = tuple(range(first, at + 1, interval))
    if len(iterations) < 2:
        raise BadInput(
            f"there is no second checkpoint within the last {merge.last} iterations; they are at "
            f"multiples of {interval}"
        )
    for iteration in iterations:
        if (reason := trainer.retention_refusal(iteration)) is not None:
            raise BadInput(f"checkpoint {iteration}: {reason}")
    suffix = f"-{merge.name}" if merge.name else ""
    name = check_job(f"{experiment.project.name}-merge{at}{suffix}")
    output = root / name
    scores = merge.scores or trainer.merge_scores
    spec = JobSpec(
        name=name,
        kind=Kind.MERGE,
        parent=experiment.project.name,
        merge=MergeInputs(
            iterations=iterations,
            weights=weights_of(merge.shape, len(iterations)),
            shape=merge.shape,
        ),
        backend=experiment.backend,
        machine=machine_with(experiment, f"{where}.slurm", {**_ONE_NODE, **merge.slurm}),
        container=experiment.container,
        command=(),
        environment=trainer.environment(),
        output_dir=str(output),
        save_dir=str(output / "checkpoints"),
        scores=str(output / scores) if scores else None,
    )
    planned = estimate(spec, experiment.budget, merge.minutes)
    # Their own names are known once they are there.
    paths = [spec.input_dir(iteration) for iteration in iterations]
    command = trainer.merge_command(paths, spec.merge_weights, spec.merged_path)
    return spec.model_copy(update={"planned": planned, "command": command})
