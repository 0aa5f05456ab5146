"""Trackers of a session on the cluster: a job is killed, and MLflow's server is away meanwhile."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoexp.payload import processes_with_cookie
from autoexp.resources.node import read_proc
from autoexp.session.session import Session
from autoexp.states import Verdict
from autoexp.storage import metrics_file
from tests.event_files import events
from tests.flows.sessions import Make
from tests.patience import until
from tests.slurm.watching import run
from tests.trackers.mlflow_server import MlflowServer, mlflow_server

pytestmark = [pytest.mark.slurm, pytest.mark.prefect]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    with mlflow_server(tmp_path) as made:
        yield made


def shown(folder: Path) -> list[int]:
    """The iterations that TensorBoard shows: a START takes back what an attempt has lost."""
    steps: list[int] = []
    for event in events(folder):
        if event.HasField("session_log"):
            steps = [step for step in steps if step < event.step]
        elif any(value.tag == "loss" for value in event.summary.value):
            steps.append(event.step)
    return steps


async def test_each_job_is_one_run_over_its_attempts_and_an_outage_of_the_tracker(
    make_session: Make, server: MlflowServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(server.uri)

    def curve(job: str) -> list[int]:
        """The steps of a job's losses in MLflow, over all runs of its name."""
        found = [each.experiment_id for each in client.search_experiments() if each.name == "demo"]
        runs = client.search_runs(found) if found else []
        (mine,) = [each for each in runs if each.info.run_name == job] or [None]
        history = client.get_metric_history(mine.info.run_id, "loss") if mine else []
        return sorted(point.step for point in history)

    def said() -> list[str]:
        texts = [record.getMessage() for record in caplog.records]
        return [text for text in texts if text.startswith("tracking")]

    hold = tmp_path / "hold"
    hold.mkdir()
    (hold / "130").touch()
    path = make_session(
        "cooldowns=[{at: [100], decay: {iterations: 50}}]",
        f"backend.args.hold={hold}",
        "monitoring=production",
        "slurm.gpus_per_node=0",
        f"tracking={{mlflow: {{uri: '{server.uri}'}}, tensorboard: runs, every: 1s}}",
    )
    running = asyncio.create_task(run(path))
    await asyncio.to_thread(until, lambda: 130 in curve("demo"), "the curve of the first attempt")
    server.stop()
    (attempt,) = Session.load(path).jobs["demo"].attempts
    of_job = {pid: read_proc(pid, "cmdline") for pid in processes_with_cookie(attempt.key)}
    (trainer,) = [pid for pid, words in of_job.items() if b"autoexp.demo.trainer" in words]
    os.kill(trainer, signal.SIGKILL)
    await asyncio.to_thread(until, said, "a warning")
    server.start()
    (hold / "130").unlink()
    assert (await running)[0] == "COMPLETED"

    assert [text.partition(": ")[0] for text in said()] == ["tracking.mlflow"] * 2, said()
    assert "it is tried again, and nothing is lost" in said()[0]
    assert said()[1] == "tracking.mlflow: goes on"

    session = Session.load(path)
    trunk, cooldown = session.jobs["demo"], session.jobs["demo-cd100"]
    assert [each.verdict for each in (trunk, cooldown)] == [Verdict.FINISHED] * 2
    assert [each.state for each in trunk.attempts] == ["FAILED", "COMPLETED"]
    (experiment,) = [each for each in client.search_experiments() if each.name == "demo"]
    found = client.search_runs([experiment.experiment_id])
    runs = {each.info.run_name: each for each in found}
    assert len(found) == 3 and set(runs) == {session.id, "demo", "demo-cd100"}
    for name in session.jobs:
        assert runs[name].info.status == "FINISHED"
        assert runs[name].data.tags["mlflow.parentRunId"] == runs[session.id].info.run_id
    assert runs["demo-cd100"].data.params["parent"] == "demo"
    # The second attempt went on at 100: it did 110 to 130 again, which MLflow has marked.
    grid = list(range(10, 301, 10))
    assert curve("demo") == sorted([*grid, 110, 120, 130])
    assert runs["demo"].data.tags["autoexp.rewound"] == "130>110"
    assert curve("demo-cd100") == [110, 120, 130, 140, 150]
    assert shown(path.parent / "runs" / path.name / "demo") == grid
    assert shown(path.parent / "runs" / path.name / "demo-cd100") == curve("demo-cd100")
    assert [row.iteration for row in metrics_file.read(path, "demo")] == grid
