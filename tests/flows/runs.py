"""What Prefect keeps of a session's flow run."""

import asyncio
import time
from typing import Any
from uuid import UUID

from prefect import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
    TaskRunFilter,
    TaskRunFilterFlowRunId,
)
from prefect.client.schemas.objects import Artifact, FlowRun, TaskRun

from autoexp.session.session import Session
from tests.patience import PATIENCE_S


async def subflows(session: Session) -> list[FlowRun]:
    parent = session.meta.flow_run_ids[-1]
    async with get_client() as client:
        return await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[parent])
            )
        )


async def task_runs(session: Session) -> list[TaskRun]:
    """All of a session's: those in its own run, and those in its jobs'."""
    jobs = [run.id for run in await subflows(session)]
    return await task_runs_in(UUID(str(session.meta.flow_run_ids[-1])), *jobs)


async def task_runs_in(*flow_run_ids: UUID) -> list[TaskRun]:
    inside = TaskRunFilterFlowRunId(any_=list(flow_run_ids))
    async with get_client() as client:
        return await client.read_task_runs(task_run_filter=TaskRunFilter(flow_run_id=inside))


async def materialized(session: Session, key: str) -> dict[str, tuple[str, set[str]]]:
    """By asset how it ended and of which it was made, once the server has the event of `key`."""
    body = {
        "filter": {
            "event": {"prefix": ["prefect.asset.materialization."]},
            "resource": {"id_prefix": [f"autoexp://{session.id}/"]},
        },
        "limit": 50,
    }
    found: dict[str, tuple[str, set[str]]] = {}
    async with get_client() as client:
        async with asyncio.timeout(PATIENCE_S):
            while key not in found:
                await asyncio.sleep(0.2)
                answer = await client.request("POST", "/events/filter", json=body)
                found = dict(map(_asset, answer.json()["events"]))
    return found


def _asset(event: dict[str, Any]) -> tuple[str, tuple[str, set[str]]]:
    of = {
        related["prefect.resource.id"]
        for related in event["related"]
        if related["prefect.resource.role"] == "asset"
    }
    return event["resource"]["prefect.resource.id"], (event["event"].rpartition(".")[2], of)


async def arrows(session: Session, expected: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The run graph's arrows, by the names at both ends, once the server has the `expected` ones.

    It writes task runs down from their events, some time after these have been sent.
    """
    path = {"id": session.meta.flow_run_ids[0]}
    deadline = time.monotonic() + PATIENCE_S
    async with get_client() as client:
        while True:
            answer = await client.request("GET", "/flow_runs/{id}/graph-v2", path_params=path)
            nodes = {node["id"]: node for _, node in answer.json()["nodes"]}
            names = {key: node["label"].rpartition(" / ")[2] for key, node in nodes.items()}
            found = {
                (names[parent["id"]], names[key])
                for key, node in nodes.items()
                for parent in node["parents"]
                if parent["id"] in names
            }
            if found >= expected or time.monotonic() > deadline:
                return found
            await asyncio.sleep(0.5)


async def artifacts(session: Session) -> list[Artifact]:
    parent = session.meta.flow_run_ids[-1]
    async with get_client() as client:
        return await client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[parent]))
        )
