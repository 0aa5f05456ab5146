"""What people see in Prefect: artifacts that follow the session. A server away is a warning."""

import asyncio
import base64
import json
import logging
import re
import time
from typing import Any
from uuid import UUID

from prefect import get_client
from prefect.artifacts import (
    acreate_image_artifact,
    acreate_progress_artifact,
    acreate_table_artifact,
    aupdate_progress_artifact,
)
from prefect.client.schemas.actions import ArtifactUpdate

from autoexp.monitor import Look
from autoexp.session import Session
from autoexp.status import JobStatus, Status, status_of


class Face:
    """Publishes in the background: at once when a state changed, else not too often."""

    def __init__(self, session: Session, log: "logging.Logger | Any") -> None:
        self._session = session
        self._log = log
        self._publishing: asyncio.Task[None] | None = None
        self._dirty = True
        self._urgent = True
        self._published_at = 0.0
        self._table: UUID | None = None
        self._bars: dict[str, UUID] = {}
        self._shown: dict[str, tuple[float, str]] = {}
        self._started: set[str] = set()
        self._failures = 0

    def start(self, job: str) -> None:
        """A job's story has begun: from now on it has a progress bar."""
        self._started.add(job)
        self._urgent = True

    def offer(self, children: asyncio.TaskGroup, look: Look) -> None:
        """Publish in the background if something changed and it is time."""
        self._dirty |= bool(look.changed)
        self._urgent |= bool(look.events)
        if self._publishing is not None or not (self._urgent or (self._dirty and self._is_due())):
            return
        self._dirty = self._urgent = False
        self._publishing = children.create_task(self._publish())

    async def close(self) -> None:
        """Publish the end of the story, with the plot."""
        await self._publish()
        try:
            await self._publish_plot()
        except Exception as error:
            self._warn(error)

    def _is_due(self) -> bool:
        every = self._session.experiment.monitoring.publish_every_s
        return time.monotonic() - self._published_at >= every

    async def _publish(self) -> None:
        try:
            status = status_of(self._session)
            await self._publish_table(status)
            for job in status.jobs:
                if job.name in self._started:
                    await self._publish_bar(job)
            self._failures = 0
        except Exception as error:
            self._warn(error)
        finally:
            self._published_at = time.monotonic()
            self._publishing = None

    def _warn(self, error: Exception) -> None:
        self._dirty = True
        self._failures += 1
        if self._failures == 1:
            self._log.warning("Prefect did not take the session's artifacts: %s", error)

    async def _publish_table(self, status: Status) -> None:
        rows = [_row(job) for job in status.jobs]
        if self._table is None:
            self._table = await acreate_table_artifact(
                rows, key=_key(self._session.id, "jobs"), description=_headline(status)
            )
            return
        async with get_client() as client:
            update = ArtifactUpdate(data=json.dumps(rows), description=_headline(status))
            await client.update_artifact(self._table, update)

    async def _publish_bar(self, job: JobStatus) -> None:
        share = 100.0 * (job.iteration or 0) / (job.target_iteration or 1)
        text = f"{job.name}: {job.state}, iteration {job.iteration or 0} of {job.target_iteration}"
        if self._shown.get(job.name) == (share, text):
            return  # of a thousand jobs a few have moved
        if job.name in self._bars:
            await aupdate_progress_artifact(self._bars[job.name], share, description=text)
        else:
            key = _key(self._session.id, job.name, "progress")
            self._bars[job.name] = await acreate_progress_artifact(share, key=key, description=text)
        self._shown[job.name] = (share, text)

    async def _publish_plot(self) -> None:
        # Drawing imports matplotlib, which takes most of a second.
        path = await asyncio.to_thread(_draw, self._session)
        picture = base64.b64encode(path.read_bytes()).decode()
        await acreate_image_artifact(
            f"data:image/png;base64,{picture}",
            key=_key(self._session.id, "plot"),
            description=f"loss and learning rate of {self._session.id} ({path})",
        )


def _draw(session: Session) -> Any:
    from autoexp import plot

    return plot.draw(session)


def _headline(status: Status) -> str:
    return f"session {status.session}: {status.state}"


def _row(job: JobStatus) -> dict[str, Any]:
    return {
        "job": job.name,
        "state": job.state,
        "verdict": job.verdict or "",
        "iteration": f"{job.iteration or 0}/{job.target_iteration}",
        "loss": "" if job.loss is None else f"{job.loss:.4f}",
        "reason": job.reason or "",
        "job id": (job.attempts[-1].job_id or "") if job.attempts else "",
        "log": job.log or "",
        "output": job.output_dir,
    }


def _key(*parts: str) -> str:
    """An artifact's key: lowercase letters, digits and dashes."""
    return re.sub(r"[^a-z0-9-]+", "-", "-".join(parts).lower()).strip("-")
