"""A cooldown on its own: a session of one branch, from a checkpoint that is on disk already."""

from pathlib import Path

from autoexp.compose import Composed
from autoexp.creation import create, new_id
from autoexp.errors import BadInput
from autoexp.experiment import Cooldown, Experiment, Start
from autoexp.provenance import Provenance
from autoexp.rules.actions import Decay


def create_branch(
    composed: Composed,
    root: Path,
    checkpoint: Path,
    decay: Decay,
    *,
    provenance: Provenance | None = None,
    flow_run_id: str | None = None,
) -> Path:
    """Create a session whose only job branches from `checkpoint`; returns its directory.

    `composed` is the experiment that the checkpoint is of; its own cooldowns are left out. Raises
    BadInput when there is no complete checkpoint, or no branch is possible from it.
    """
    experiment = composed.experiment
    start = find_checkpoint(checkpoint.absolute(), experiment)
    branch = Cooldown(at=(start.iteration,), decay=decay)
    alone = experiment.model_copy(update={"cooldowns": (branch,), "start": start})
    return create(
        composed._replace(experiment=alone),
        root,
        session_id=new_id(f"{experiment.project.name}-cd{start.iteration}"),
        provenance=provenance,
        flow_run_id=flow_run_id,
    )


def find_checkpoint(checkpoint: Path, experiment: Experiment) -> Start:
    """The complete checkpoint at a path; raises BadInput with those that there are."""
    complete = experiment.trainer.checkpoints(checkpoint.parent).complete
    iteration = next((x.iteration for x in complete if x.path == checkpoint), None)
    if iteration is None:
        names = ", ".join(x.path.name for x in complete) or "none"
        raise BadInput(
            f"{checkpoint}: no complete checkpoint of a {experiment.backend.kind} training; "
            f"in {checkpoint.parent} there are: {names}"
        )
    return Start(iteration=iteration, path=str(checkpoint))
