"""One evaluation on its own, of an existing checkpoint, as a session with one job."""

from pathlib import Path
from typing import Any

from prefect import State, flow

from autoexp.config.compose import Composed
from autoexp.flows.engine.cancellation_hook import cancel_jobs
from autoexp.flows.engine.lifecycle import compose_request, create_and_watch, run_name
from autoexp.flows.publishing.form import ConfigName, ExperimentForm, SiteName
from autoexp.jobs.spec import JobSpec
from autoexp.planning.evaluation import evaluation
from autoexp.planning.plan import Plan
from autoexp.session.meta import new_id, output_root
from autoexp.storage.places import sessions_root


@flow(
    name="autoexp-evaluate",
    flow_run_name=run_name,
    validate_parameters=False,
    retries=0,
    on_cancellation=[cancel_jobs],
)
async def evaluate(
    checkpoint: str,
    command: tuple[str, ...],
    scores: str | None = None,
    minutes: float | None = None,
    config: ConfigName = "demo",
    site: SiteName = None,
    overrides: tuple[str, ...] = (),
    experiment: ExperimentForm | None = None,
) -> State[Any]:
    """Run a command about a checkpoint on disk, as a session of its own.

    Args:
        checkpoint: Path of a complete checkpoint's folder, such as `.../iter_0001000`.
        command: An argument each; `{checkpoint_path}`, `{checkpoint_iteration}`, `{output_dir}` and
            `{python}` stand for their values. Each arrives as it is.
        scores: JSON file of numbers that the command writes in its output directory.
        minutes: How long it takes, for the budget; without, its time limit counts.
        config: The experiment that the checkpoint is of: a configuration's name, or a YAML file
            such as `sessions/ID/config/resolved.yaml`.
        site: Where jobs run: a file of `configs/slurm/`; as the configuration says by default.
        overrides: Changes to it, such as `slurm.gpus_per_node=1`.
        experiment: The experiment, filled in here instead of `config`, `site` and `overrides`.
    """

    def job(composed: Composed, outputs: Path) -> JobSpec:
        return evaluation(composed.experiment, outputs, Path(checkpoint), command, scores, minutes)

    def id_of(composed: Composed) -> str:
        return new_id(job(composed, Path()).name)

    def plan(composed: Composed, session: str) -> Plan:
        outputs = output_root(composed.experiment, sessions_root() / session)
        return Plan(jobs=(job(composed, outputs),))

    def compose() -> Composed:
        return compose_request(config, site, overrides, experiment)

    return await create_and_watch(compose, id_of, plan)
