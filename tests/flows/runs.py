"""What Prefect keeps of a session's flow run."""

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


async def subflows(session: Session) -> list[FlowRun]:
    parent = session.meta.flow_run_ids[-1]
    async with get_client() as client:
        return await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[parent])
            )
        )


async def task_runs(session: Session) -> list[TaskRun]:
    parent = session.meta.flow_run_ids[-1]
    async with get_client() as client:
        return await client.read_task_runs(
            task_run_filter=TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[parent]))
        )


async def artifacts(session: Session) -> list[Artifact]:
    parent = session.meta.flow_run_ids[-1]
    async with get_client() as client:
        return await client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[parent]))
        )
