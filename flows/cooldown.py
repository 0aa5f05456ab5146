"""One cooldown on its own, from an existing checkpoint, as a session with one job.

1. Pin: the checkpoint is seeded into the cooldown's own folder, where no retention deletes it.
2. Submit the job: once, whatever dies in between.
3. Await its verdict: finished once the decay is over; a job that ends before that is resubmitted.

A cooldown that a training launches lives the same way inside the training's session: its subflow
(`flows/engine/subflows.py`) waits for the verdict, and the one loop of the session does the rest.
"""

from pathlib import Path
from typing import Any

from prefect import State, flow

from autoexp.config.compose import Composed
from autoexp.flows.engine.cancellation_hook import cancel_jobs
from autoexp.flows.engine.lifecycle import compose_request, create_and_watch, run_name
from autoexp.flows.publishing.form import ConfigName, ExperimentForm, SiteName
from autoexp.planning import standalone
from autoexp.rules.actions import Decay
from autoexp.session.create import new_id_of


@flow(
    name="autoexp-cooldown",
    flow_run_name=run_name,
    validate_parameters=False,
    retries=0,
    on_cancellation=[cancel_jobs],
)
async def cooldown(
    checkpoint: str,
    decay: Decay,
    config: ConfigName = "demo",
    site: SiteName = None,
    overrides: tuple[str, ...] = (),
    experiment: ExperimentForm | None = None,
) -> State[Any]:
    """Branch one cooldown from a checkpoint on disk, as a session of its own.

    Args:
        checkpoint: Path of a complete checkpoint's folder, such as `.../iter_0001000`.
        decay: Length (`iterations` or `fraction`), shape and final learning rate.
        config: The experiment that the checkpoint is of: a configuration's name, or a YAML file
            such as `sessions/ID/config/resolved.yaml`.
        site: Where jobs run: a file of `configs/slurm/`; as the configuration says by default.
        overrides: Changes to it, such as `slurm.nodes=4`.
        experiment: The experiment, filled in here instead of `config`, `site` and `overrides`.
    """

    def branch() -> Composed:
        whole = compose_request(config, site, overrides, experiment)
        return standalone.branch_alone(whole, Path(checkpoint), Decay.model_validate(decay))

    # Pins as it creates, submits and awaits the verdict as it watches.
    return await create_and_watch(branch, new_id_of)
