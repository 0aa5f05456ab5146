"""One cooldown on its own, from an existing checkpoint. Entry point of a deployment."""

from pathlib import Path
from typing import Any

from prefect import State, flow

from autoexp.config.compose import Composed
from autoexp.flows.engine.lifecycle import ask_for, cancel_jobs, run_name, watch_new
from autoexp.flows.publishing.form import ExperimentForm
from autoexp.planning import standalone
from autoexp.rules.actions import Decay
from autoexp.session.create import new_id_of


@flow(
    name="autoexp-cooldown",
    flow_run_name=run_name,
    validate_parameters=False,
    on_cancellation=[cancel_jobs],
)
async def cooldown(
    checkpoint: str,
    decay: Decay,
    config: str = "demo",
    overrides: tuple[str, ...] = (),
    experiment: ExperimentForm | None = None,
) -> State[Any]:
    """Branch one cooldown from a checkpoint on disk, as a session of its own.

    Args:
        checkpoint: Path of a complete checkpoint's folder, such as `.../iter_0001000`.
        decay: Length (`iterations` or `fraction`), shape and final learning rate.
        config: The experiment that the checkpoint is of: a configuration's name, or a YAML file
            such as `sessions/ID/config/resolved.yaml`.
        overrides: Changes to it, such as `slurm=lumi`.
        experiment: The experiment, filled in here instead of `config` and `overrides`.
    """

    def ask() -> Composed:
        whole = ask_for(config, overrides, experiment)
        return standalone.branch_alone(whole, Path(checkpoint), Decay.model_validate(decay))

    return await watch_new(ask, new_id_of)
