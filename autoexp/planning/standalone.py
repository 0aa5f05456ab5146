"""One cooldown from an existing checkpoint: a session of its own, or a job of a running one."""

from pathlib import Path

from pydantic import ValidationError

from autoexp.config.compose import Composed
from autoexp.config.cooldowns import Cooldown
from autoexp.config.experiment import CheckpointSource, Experiment
from autoexp.errors import BadInput
from autoexp.jobs.budget import estimate
from autoexp.jobs.spec import JobSpec
from autoexp.model import first_problem
from autoexp.planning.cooldowns import cooldown_jobs
from autoexp.rules.actions import Decay, LaunchedCooldown


def branch_alone(composed: Composed, checkpoint: Path, decay: Decay) -> Composed:
    """The experiment whose only training is a branch from `checkpoint`.

    ``composed` is the experiment that the checkpoint is of; its own cooldowns are left out, and so
    are its stages. Raises BadInput when there is no complete checkpoint.
    """
    experiment = composed.experiment
    if composed.points:
        raise BadInput(f"{experiment.project.name}: a cooldown is of one training, and not a sweep")
    start = find_checkpoint(checkpoint.absolute(), experiment)
    branch = Cooldown(at=(start.iteration,), decay=decay)
    stages = {name: s for name, s in experiment.stages.items() if s is not None and s.each}
    changes = {"cooldowns": (branch,), "baselines": (), "merges": (), "start": start}
    changes |= {"stages": stages}
    return composed._replace(experiment=experiment.model_copy(update=changes))


def cooldown_from(
    experiment: Experiment,
    training: JobSpec,
    start: CheckpointSource,
    asked: LaunchedCooldown,
    root: Path,
) -> JobSpec:
    """The cooldown from a checkpoint of a session's training, wherever that was saved.

    Raises BadInput where the trainer cannot branch there.
    """
    changes = {
        "project": experiment.project.model_copy(update={"name": training.name}),
        "backend": training.backend,
        "slurm": training.machine,
        "start": start,
    }
    own = experiment.model_copy(update=changes)
    try:
        wanted = Cooldown(at=(start.iteration,), decay=asked.decay, name=asked.name)
    except ValidationError as error:
        raise BadInput(first_problem(error)) from error
    found = cooldown_jobs(wanted, own, root, set())
    if found.refused:
        raise BadInput("; ".join(found.refused))
    job = found.jobs[0].model_copy(update={"parent": training.name})
    return job.model_copy(update={"planned": estimate(job, experiment.budget)})


def find_checkpoint(checkpoint: Path, experiment: Experiment) -> CheckpointSource:
    """The complete checkpoint at a path; raises BadInput with the existing ones."""
    complete = experiment.trainer.checkpoints(checkpoint.parent).complete
    iteration = next((x.iteration for x in complete if x.path == checkpoint), None)
    if iteration is None:
        names = ", ".join(x.path.name for x in complete) or "none"
        raise BadInput(
            f"{checkpoint}: no complete checkpoint of a {experiment.backend.kind} training; "
            f"in {checkpoint.parent} there are: {names}"
        )
    return CheckpointSource(iteration=iteration, path=str(checkpoint))
