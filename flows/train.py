"""The session flow: one flow run that watches a training and all its cooldowns.

1. Make the session, or find it: a directory with the plan, from which any process can resume.
2. Watch it, with one loop for all jobs (`flows/engine/session_run.py`): look at logs, checkpoints
   and the scheduler's answers, decide what follows, and spawn it: submissions, cooldowns of new
   checkpoints, actions of rules. Each runs beside the loop, which waits for none of them.
3. Return once every job has its verdict.
"""

from typing import Any

from prefect import State, flow

from autoexp.flows.engine.cancellation_hook import cancel_jobs
from autoexp.flows.engine.lifecycle import compose_request, create_and_watch, run_name, watch
from autoexp.flows.publishing.form import ConfigName, ExperimentForm, SiteName
from autoexp.storage.places import sessions_root


@flow(
    name="autoexp-train",
    flow_run_name=run_name,
    validate_parameters=False,
    retries=0,
    on_cancellation=[cancel_jobs],
)
async def train(
    config: ConfigName = "demo",
    site: SiteName = None,
    overrides: tuple[str, ...] = (),
    experiment: ExperimentForm | None = None,
    session: str | None = None,
) -> State[Any]:
    """Train and branch cooldowns; with `session`, resume an existing session.

    Args:
        config: Name of a configuration, or path of a YAML file.
        site: Where jobs run: a file of `configs/slurm/`; as the configuration says by default.
        overrides: Changes to it, such as `backend.args.lr=1e-3` or `slurm.nodes=4`.
        experiment: A whole experiment, filled in here instead of `config`, `site` and `overrides`.
        session: Id of an existing session; it is resumed, and the rest is ignored.
    """
    if session:
        return await watch(sessions_root() / session)
    return await create_and_watch(lambda: compose_request(config, site, overrides, experiment))
