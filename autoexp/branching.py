"""A cooldown on its own: a session of one branch, from a checkpoint that is on disk already."""

from pathlib import Path

from autoexp.compose import Composed
from autoexp.creation import create, new_id
from autoexp.errors import BadInput
from autoexp.events import CheckpointComplete
from autoexp.experiment import Cooldown, Experiment
from autoexp.rules.actions import Decay


def create_branch(
    composed: Composed,
    root: Path,
    checkpoint: Path,
    decay: Decay,
    *,
    provenance: dict[str, dict[str, str]] | None = None,
    flow_run_id: str | None = None,
) -> Path:
    """Create a session whose only job branches from `checkpoint`; returns its directory.

    `composed` is the experiment that the checkpoint is of; its own cooldowns are left out. Raises
    BadInput when there is no complete checkpoint, or no branch is possible from it.
    """
    experiment = composed.experiment
    event = _find(checkpoint.absolute(), experiment)
    branch = Cooldown(at=(event.iteration,), decay=decay)
    alone = experiment.model_copy(update={"cooldowns": (branch,)})
    return create(
        composed._replace(experiment=alone),
        root,
        session_id=new_id(f"{experiment.project.name}-cd{event.iteration}"),
        provenance=provenance,
        flow_run_id=flow_run_id,
        begin_at=event,
    )


def _find(checkpoint: Path, experiment: Experiment) -> CheckpointComplete:
    complete = experiment.trainer.checkpoints(checkpoint.parent).complete
    iteration = next((x.iteration for x in complete if x.path == checkpoint), None)
    if iteration is None:
        names = ", ".join(x.path.name for x in complete) or "none"
        raise BadInput(
            f"{checkpoint}: no complete checkpoint of a {experiment.backend.kind} training; "
            f"in {checkpoint.parent} there are: {names}"
        )
    interval = experiment.trainer.save_interval
    if iteration % interval:
        raise BadInput(
            f"{checkpoint}: iteration {iteration} is no multiple of the save_interval {interval} "
            "in this configuration; give that of the training which saved it"
        )
    return CheckpointComplete(
        job=experiment.project.name, iteration=iteration, path=str(checkpoint)
    )
