"""A standalone cooldown: a session of one branch, from an existing checkpoint."""

from pathlib import Path

from autoexp.config.compose import Composed
from autoexp.config.cooldowns import Cooldown
from autoexp.config.experiment import CheckpointSource, Experiment
from autoexp.errors import BadInput
from autoexp.rules.actions import Decay


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
