"""W&B: one run a job, grouped by session, by the client of wandb itself."""

import hashlib
import re
from pathlib import Path
from typing import Any

import wandb
from wandb.errors import Error

from autoexp.tracking.settings import Wandb
from autoexp.tracking.tracker import Batch, Kept, TrackedJob, away

_OFFLINE_REST_S = 6 * 3600.0
"""Each batch makes a directory, and nobody sees it before `wandb sync`."""
_PATIENCE_S = 60.0
_LONGEST_ID = 64  # characters, which W&B takes
_FOREIGN = re.compile(r"[^\w.-]")


class WandbRuns:
    """Sends to W&B, or writes directories for `wandb sync`."""

    name = "wandb"

    def __init__(self, settings: Wandb, directory: Path) -> None:
        self._settings = settings
        self._directory = directory
        self.rest_s = _OFFLINE_REST_S if settings.mode == "offline" else 0.0

    def send(self, job: TrackedJob, batch: Batch) -> Kept:
        """Send a batch and wait until it has arrived; raises TrackerAway.

        W&B takes no step twice, so the iteration is a metric, and the x axis of all others.
        """
        try:
            run = self._begin(job)
            run.define_metric("iteration")
            run.define_metric("*", step_metric="iteration")
            for point, generation in batch.marked():
                row = {"iteration": point.iteration, "generation": generation, **point.metrics}
                run.log(row)
            run.summary["state"] = job.state or "running"
            if batch.rewinds:
                run.summary["rewound"] = batch.rewound
            for name, value in job.scores.items():
                run.summary[f"score/{name}"] = value
            run.finish(exit_code=0 if job.state in (None, "finished") else 1)
        except (Error, OSError, TimeoutError) as error:
            raise away(error) from error
        return {"run": run.id}

    def close(self) -> None:
        """Have wandb's own process end."""
        wandb.teardown()

    def _begin(self, job: TrackedJob) -> Any:
        is_offline = self._settings.mode == "offline"
        self._directory.mkdir(parents=True, exist_ok=True)
        return wandb.init(
            project=self._settings.project or job.owner.project,
            entity=self._settings.entity,
            id=run_id(job),
            name=job.name,
            group=job.owner.session,
            job_type=job.kind,
            config={"parent": job.parent, **job.settings},
            dir=str(self._directory),
            mode=self._settings.mode,
            resume=None if is_offline else "allow",
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                x_disable_stats=True,
                init_timeout=_PATIENCE_S,
            ),
        )


def run_id(job: TrackedJob) -> str:
    """The id of a job's run, the same for all of its attempts and batches."""
    name = _FOREIGN.sub("_", job.id)
    if len(name) <= _LONGEST_ID:
        return name
    return f"{name[: _LONGEST_ID - 9]}-{hashlib.sha256(job.id.encode()).hexdigest()[:8]}"
