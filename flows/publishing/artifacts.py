"""Publishes a session's artifacts, events and tags. A server that is away is a warning.

Everything is sent in the background: at once when a state changed, else at intervals. What could
not be sent goes with the next publication.
"""

import asyncio
import base64
import logging
import math
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import get_client, runtime
from prefect.artifacts import (
    acreate_image_artifact,
    acreate_markdown_artifact,
    acreate_progress_artifact,
    acreate_table_artifact,
    aupdate_progress_artifact,
)
from prefect.client.schemas.actions import ArtifactUpdate

from autoexp import sinks
from autoexp.flows.concurrency.children import Children
from autoexp.flows.concurrency.outbox import PrefectOutbox
from autoexp.flows.concurrency.turns import Precedence
from autoexp.flows.concurrency.visits import Visits
from autoexp.flows.concurrency.writer import SessionWriter
from autoexp.flows.publishing import page
from autoexp.flows.publishing.events import EventEmitter
from autoexp.monitor.monitor import Look
from autoexp.reports.status import JobSummary, Status, status_of
from autoexp.reports.upkeep.goodput import PARTS, goodput
from autoexp.session.session import Session

# Drawing takes two seconds of a core, in a process of its own: what it imports would stay here for
# days. So not at every publication, and less and less often, as a long curve changes little.
_PLOT_EVERY = 10
_LEAST_PLOT_S, _LONGEST_PLOT_S = 60.0, 3600.0
_PLOT_SHARE = 20
_DRAWING_S = 300.0
_WHAT = "the session's artifacts"


class ArtifactPublisher:
    """The session's artifacts, events and tags."""

    def __init__(
        self,
        session: Session,
        writer: SessionWriter,
        outbox: PrefectOutbox,
        visits: Visits,
        precedence: Precedence,
        log: "logging.Logger | Any",
    ) -> None:
        self.tags = tags_of(session)
        self._session = session
        self._writer = writer
        self._outbox = outbox
        self._visits = visits
        self._precedence = precedence
        self._log = log
        self._emitter = EventEmitter(session)
        self._publishing = False
        self._dirty = True
        self._urgent = True
        self._published_at = 0.0
        self._began_at = self._plotted_at = time.monotonic()
        self._is_ending = self._draws_here = False
        self._is_tagged = False
        self._artifacts: dict[str, UUID] = {}
        self._bars: dict[str, tuple[UUID, float, str]] = {}
        self._started: set[str] = set()
        self._failures = 0

    def add_progress_bar(self, job: str) -> None:
        """Give a job that has begun a progress bar."""
        self._started.add(job)
        self._urgent = True

    def note(self, look: Look) -> None:
        """Note what a look has found."""
        self._dirty |= bool(look.changed)
        self._urgent |= bool(look.events)

    @property
    def numbers_at(self) -> float:
        """From when on numbers that have moved call for a publication, by the monotonic clock."""
        if self._publishing or not self._visits.is_watched:
            return math.inf
        return self._published_at + self._every_s

    @property
    def due_at(self) -> float:
        """When the next publication is due, by the monotonic clock."""
        return self.numbers_at if self._dirty or self._urgent else math.inf

    def publish_if_due(self, children: Children) -> None:
        """Publish in the background if something changed, it is time, and somebody may look."""
        if self._visits.take_new():
            self._urgent |= self._dirty
        if self._publishing or not (self._is_wanted() and self._may_try()):
            return
        self._dirty = self._urgent = False
        self._publishing = True
        children.spawn("publication", self._try_to_publish())

    async def close(self, *, is_interrupted: bool) -> bool:
        """Publish the end of the session, plot included; wait for a server that is away.

        Returns False where that has taken too long.

        What is interrupted may have little CPU time left: others draw for it.
        """
        self._draws_here = not is_interrupted
        return await self._outbox.send_with_retry(_WHAT, self._publish_all)

    async def _publish_all(self) -> None:
        self._is_ending = True
        await self._publish()

    def _is_wanted(self) -> bool:
        return self._urgent or (self._dirty and self._is_due() and self._visits.is_watched)

    def _may_try(self) -> bool:
        """After a failure, False until the next interval, whatever happens."""
        return self._failures == 0 or self._is_due()

    def _is_due(self) -> bool:
        return time.monotonic() - self._published_at >= self._every_s

    @property
    def _every_s(self) -> float:
        return self._session.experiment.monitoring.publish_every_s

    async def _try_to_publish(self) -> None:
        await self._precedence.yield_to_work(time.monotonic())
        sent_at = time.monotonic()
        try:
            await self._publish()
        except Exception as error:
            self._dirty = True
            self._failures += 1
            self._outbox.outage.note_refused(_WHAT, error)
        else:
            self._outbox.outage.note_taken(_WHAT, sent_at)
            self._failures = 0
        finally:
            self._published_at = time.monotonic()
            self._publishing = False
            self._visits.heard()

    async def _publish(self) -> None:
        async with self._outbox.write_lock:
            await self._publish_artifacts()
        # Last: by now the server has answered, so events find it too.
        await self._writer.run(self._emitter.collect)
        await self._emitter.emit_new()

    async def _publish_artifacts(self) -> None:
        await self._tag()
        status, text = await self._writer.run(self._read)
        await self._publish_page("session", text, page.headline(status))
        if "plan" not in self._artifacts:
            plan = await self._writer.run(lambda: page.plan_page(self._session.plan))
            await self._publish_page("plan", plan, f"plan of {self._session.id}")
        for job in status.jobs:
            if job.name in self._started:
                await self._publish_bar(job)
        if self._is_ending or self._is_plot_due:
            await self._publish_plot()
        if self._is_ending and "goodput" not in self._artifacts:
            await self._publish_goodput()

    @property
    def _is_plot_due(self) -> bool:
        now = time.monotonic()
        least_s = max(_LEAST_PLOT_S, _PLOT_EVERY * self._every_s)
        wanted_s = max(least_s, (now - self._began_at) / _PLOT_SHARE)
        return now - self._plotted_at >= min(wanted_s, max(least_s, _LONGEST_PLOT_S))

    def _read(self) -> tuple[Status, str]:
        """Read the status and render the page; runs on the session's thread."""
        status = status_of(self._session)
        return status, page.session_page(self._session, status)

    async def _tag(self) -> None:
        """Let the flow run be found by session, project and cluster."""
        if self._is_tagged or runtime.flow_run.id is None:
            return
        tags = sorted({*(runtime.flow_run.tags or ()), *self.tags})
        async with get_client() as client:
            await client.update_flow_run(UUID(runtime.flow_run.id), tags=tags)
        self._is_tagged = True

    async def _publish_page(self, name: str, text: str, description: str) -> None:
        if name in self._artifacts:
            await _update(self._artifacts[name], text, _described(description))
        else:
            self._artifacts[name] = _id(
                await acreate_markdown_artifact(
                    text, key=_key(self._session.id, name), description=_described(description)
                )
            )

    async def _publish_bar(self, job: JobSummary) -> None:
        share = share_done(job)
        text = _described(
            f"{job.name}: {job.state}, iteration {job.iteration or 0} of {job.target_iteration}"
        )
        known = self._bars.get(job.name)
        if known is None:
            key = _key(self._session.id, job.name, "progress")
            found = await acreate_progress_artifact(share, key=key, description=text)
            self._bars[job.name] = (_id(found), share, text)
        elif known[1:] != (share, text):
            await aupdate_progress_artifact(known[0], share, description=text)
            self._bars[job.name] = (known[0], share, text)

    async def _publish_goodput(self) -> None:
        rows = await self._writer.run(goodput_rows, self._session)
        if rows:
            key = _key(self._session.id, "goodput")
            units = {str(row["unit"]) for row in rows}
            if len(units) == 1:  # else some of its jobs have GPUs, and some have none
                rows = [{name: row[name] for name in row if name != "unit"} for row in rows]
            unit = units.pop() if len(units) == 1 else "hours"
            description = sinks.markdown(f"where the {unit} of {self._session.id} went")
            made = await acreate_table_artifact(rows, key=key, description=description)
            self._artifacts["goodput"] = _id(made)

    async def _publish_plot(self) -> None:
        try:
            # The last one may be drawn here: the process is about to end.
            draw = _draw_here if self._draws_here else _draw_elsewhere
            path = await asyncio.to_thread(draw, self._session)
        except subprocess.SubprocessError as error:
            self._log.debug("the curves could not be drawn: %s", error)
            return
        finally:
            self._plotted_at = time.monotonic()
        if path is None:
            return  # nothing is logged yet
        picture = base64.b64encode(path.read_bytes()).decode()
        url = f"data:image/png;base64,{picture}"
        description = sinks.markdown(f"loss and learning rate of {self._session.id} ({path})")
        if "plot" in self._artifacts:
            await _update(self._artifacts["plot"], url, description)
        else:
            key = _key(self._session.id, "plot")
            made = await acreate_image_artifact(url, key=key, description=description)
            self._artifacts["plot"] = _id(made)


def goodput_rows(session: Session) -> list[dict[str, str | float | None]]:
    """Where the hours of each job went, as rows of a table; without jobs that never started."""
    return [
        {
            "job": row.job,
            "unit": row.unit,
            "hours": round(row.hours, 3),
            **{part: round(getattr(row, part), 3) for part in PARTS},
            "queued h": round(row.queued_h, 3),
            "new, of all": None if row.share is None else round(row.share, 3),
        }
        for row in goodput([session])
    ]


def share_done(job: JobSummary) -> float:
    """Percent of the iterations to the target; a log may name one beyond it, Prefect allows 100."""
    return min(100.0, max(0.0, 100.0 * (job.iteration or 0) / (job.target_iteration or 1)))


async def _update(artifact: UUID, data: str, description: str) -> None:
    # In place: a new version for each publication would fill the list of artifacts.
    async with get_client() as client:
        await client.update_artifact(artifact, ArtifactUpdate(data=data, description=description))


def _described(text: str) -> str:
    """An artifact's description, which Prefect's UI reads as Markdown."""
    return sinks.markdown(sinks.title(text))


def _draw_here(session: Session) -> Path | None:
    """Draw the curves of a session that is over; None where nothing is logged."""
    from autoexp.reports import plot

    return plot.draw(plot.Subject.of(session))


def _draw_elsewhere(session: Session) -> Path:
    """Draw the curves of a session that goes on, as any other process would."""
    command = [sys.executable, "-m", "autoexp", "plot", str(session.path)]
    subprocess.run(command, check=True, capture_output=True, timeout=_DRAWING_S)
    return session.path / "plot.png"


def _id(made: Any) -> UUID:
    assert isinstance(made, UUID)
    return made


def _key(*parts: str) -> str:
    """An artifact's key: lowercase letters, digits and dashes."""
    return re.sub(r"[^a-z0-9-]+", "-", "-".join(parts).lower()).strip("-")


def tags_of(session: Session) -> tuple[str, ...]:
    """`autoexp`, `session:demo-1124-k3fq`, `project:demo`, `cluster:lumi`."""
    experiment = session.experiment
    return (
        "autoexp",
        f"session:{session.id}",
        f"project:{experiment.project.name}",
        f"cluster:{session.meta.site or experiment.slurm.kind}",
    )
