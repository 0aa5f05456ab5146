"""MLflow: one run a job below the run of its session, by the client of mlflow itself."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from autoexp.tracking.settings import Mlflow
from autoexp.tracking.tracker import Batch, Kept, Owner, TrackedJob, away

_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
"""Instead of seven retries of two minutes: a server that is away is tried again by the next pass.
"""
_MOST_METRICS = 1000  # of a request, as the server limits it
_MOST_PARAMS = 100
_LONGEST_VALUE = 500  # characters of a parameter that servers of all versions take
_FOREIGN = re.compile(r"[^\w .:/-]")
_STATES = {"finished": "FINISHED", "failed": "FAILED", "cancelled": "KILLED", None: "RUNNING"}
_ID = "autoexp.id"


class MlflowRuns:
    """Sends to an MLflow server."""

    name = "mlflow"
    rest_s = 0.0

    def __init__(self, settings: Mlflow) -> None:
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        self._settings = settings
        with _said():
            self._client = MlflowClient(tracking_uri=settings.uri)
        self._experiments: dict[str, str] = {}
        self._groups: dict[str, str] = {}

    def send(self, job: TrackedJob, batch: Batch) -> Kept:
        """Send a batch; the same one again changes nothing, since its time is the same."""
        with _said():
            run_id = str(batch.kept.get("run") or self._run_of(job))
            for metrics in _parts(list(_metrics(batch)), _MOST_METRICS):
                self._client.log_batch(run_id, metrics=metrics)
            scores = [
                Metric(_key(f"score/{name}"), value, batch.at_ms, batch.last)
                for name, value in job.scores.items()
            ]
            tags = [RunTag("autoexp.rewound", batch.rewound)] if batch.rewinds else []
            if scores or tags:
                self._client.log_batch(run_id, metrics=scores, tags=tags)
            state = _STATES[job.state]
            if batch.kept.get("state", "RUNNING") != state:
                if job.state is None:
                    self._client.update_run(run_id, status=state)
                else:
                    self._client.set_terminated(run_id, status=state)
        return {"run": run_id, "state": state}

    def close(self) -> None:
        """Nothing is open between batches."""

    def _run_of(self, job: TrackedJob) -> str:
        """The run of a job, also one that was made just before a kill."""
        experiment = self._experiment_of(job.owner)
        tags = {
            "mlflow.runName": job.name,
            "mlflow.parentRunId": self._group_of(job.owner),
            "autoexp.session": job.owner.session,
            "autoexp.kind": job.kind,
        }
        run_id = self._find_or_make(experiment, job.id, tags)
        settings = {"parent": job.parent or "", **job.settings}
        params = [
            Param(_key(name), value[:_LONGEST_VALUE]) for name, value in settings.items() if value
        ]
        for some in _parts(params, _MOST_PARAMS):
            self._client.log_batch(run_id, params=some)
        return run_id

    def _group_of(self, owner: Owner) -> str:
        """The run of the session, which holds those of its jobs, and runs nothing itself."""
        if owner.session not in self._groups:
            name = f"{owner.session}-{owner.nonce}"
            tags = {"mlflow.runName": owner.session, "autoexp.session": owner.session}
            found = self._find_or_make(self._experiment_of(owner), name, tags)
            self._client.set_terminated(found)
            self._groups[owner.session] = found
        return self._groups[owner.session]

    def _find_or_make(self, experiment: str, name: str, tags: dict[str, str]) -> str:
        found = self._client.search_runs([experiment], f"tags.`{_ID}` = '{name}'", max_results=1)
        run = found[0] if found else self._client.create_run(experiment, tags={_ID: name, **tags})
        return str(run.info.run_id)

    def _experiment_of(self, owner: Owner) -> str:
        name = self._settings.experiment or owner.project
        if name not in self._experiments:
            self._experiments[name] = self._find_experiment(name)
        return self._experiments[name]

    def _find_experiment(self, name: str) -> str:
        if (found := self._client.get_experiment_by_name(name)) is not None:
            return str(found.experiment_id)
        try:
            return str(self._client.create_experiment(name))
        except MlflowException:
            # Another session may have made it in between.
            if (found := self._client.get_experiment_by_name(name)) is None:
                raise
            return str(found.experiment_id)


def _metrics(batch: Batch) -> Iterator[Any]:
    """All values of a batch; `generation` where it changes, since MLflow forgets no point."""
    generation = batch.generation
    for point, of_point in batch.marked():
        if of_point != generation:
            generation = of_point
            yield Metric("generation", generation, batch.at_ms, point.iteration)
        for name, value in point.metrics.items():
            yield Metric(_key(name), value, batch.at_ms, point.iteration)


def _parts(values: Sequence[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(values), size):
        yield list(values[start : start + size])


def _key(name: str) -> str:
    """A name as MLflow takes it: a validation's comes from a log."""
    return _FOREIGN.sub("_", name)[:250]


@contextmanager
def _said() -> Iterator[None]:
    try:
        yield
    except (MlflowException, OSError) as error:
        raise away(error) from error
