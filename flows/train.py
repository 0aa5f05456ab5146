"""The session flow: one flow run that watches a training and all its cooldowns.

Entry point `flows/train.py:train`. Prefect loads this file as a module named `train`, so it
defines nothing but flows.
"""

from typing import Any

from prefect import State, flow

from autoexp.flows.engine.lifecycle import ask_for, cancel_jobs, run_name, watch, watch_new
from autoexp.flows.publishing.form import ExperimentForm
from autoexp.storage.places import sessions_root


@flow(
    name="autoexp",
    flow_run_name=run_name,
    validate_parameters=False,
    on_cancellation=[cancel_jobs],
)
async def train(
    config: str = "demo",
    overrides: tuple[str, ...] = (),
    experiment: ExperimentForm | None = None,
    session: str | None = None,
) -> State[Any]:
    """Train and branch cooldowns; with `session`, take an existing session up again.

    Args:
        config: Name of a configuration, or path of a YAML file.
        overrides: Changes to it, such as `backend.args.lr=1e-3` or `slurm=lumi`.
        experiment: A whole experiment, filled in here instead of `config` and `overrides`.
        session: Id of a session that exists; it is taken up again, and the rest is ignored.
    """

    if session:
        return await watch(sessions_root() / session)
    return await watch_new(lambda: ask_for(config, overrides, experiment))
