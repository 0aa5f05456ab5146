"""Trackers as they are: an MLflow server, W&B's offline mode, TensorBoard's own reader."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoexp.config.compose import compose
from autoexp.session.session import Session
from autoexp.states import Verdict
from autoexp.tracking.send import Sent, send_new
from autoexp.tracking.settings import Tracking
from autoexp.tracking.tracker import Owner
from tests.builders import TINY, create
from tests.killing import killed_at
from tests.trackers.mlflow_server import MlflowServer, mlflow_server

OWNER = Owner("s1", "abcd", "tiny")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return create(compose("demo", TINY), tmp_path / "sessions", session_id="s1")


def log(path: Path, *iterations: int, job: str = "tiny", loss: float = 2.0) -> None:
    session = Session.load(path)
    session.log_progress(session.jobs[job], (f"{i},{loss},0.01,0.5\n" for i in iterations))
    session.change_job(session.jobs[job], iteration=iterations[-1])


def finish(path: Path, job: str = "tiny") -> None:
    session = Session.load(path)
    session.change_job(session.jobs[job], verdict=Verdict.FINISHED, scores={"accuracy": 0.5})


def send(path: Path, settings: dict[str, Any]) -> Sent:
    (sent,) = send_new(path, OWNER, Tracking.model_validate(settings))
    return sent


# MLflow


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    with mlflow_server(tmp_path) as made:
        yield made


def test_mlflow_has_one_run_a_job_below_its_session_through_outages_and_kills(
    path: Path, server: MlflowServer
) -> None:
    from mlflow import MlflowClient

    settings: dict[str, Any] = {"mlflow": {"uri": server.uri}}
    log(path, 10, 20, 30)
    assert send(path, settings) == Sent(tracker="mlflow", points=3, jobs=3, problem=None)

    # A server that is away is one problem, and nothing is lost.
    server.stop()
    log(path, 40)
    assert "Connection refused" in str(send(path, settings).problem)
    server.start()
    log(path, 50)
    assert send(path, settings) == Sent(tracker="mlflow", points=2, jobs=1, problem=None)

    # Killed at each durable step: no point twice, no second run.
    step = 1
    log(path, 110, job="tiny-cd100")
    while killed_at(step, lambda: send(path, settings)):
        log(path, 110 + 10 * step, job="tiny-cd100")
        step += 1
    log(path, 40, 50, loss=1.0)  # from the checkpoint at 30
    finish(path)
    assert send(path, settings).problem is None

    client = MlflowClient(server.uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "tiny"]
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"s1", "tiny", "tiny-cd100"}
    assert runs["tiny"].data.tags["mlflow.parentRunId"] == runs["s1"].info.run_id
    assert runs["tiny"].info.status == "FINISHED"
    assert runs["tiny-cd100"].info.status == "RUNNING"
    assert runs["tiny-cd100"].data.params["starts_at"] == "100"

    def curve(job: str, name: str) -> list[tuple[int, float]]:
        history = client.get_metric_history(runs[job].info.run_id, name)
        return [(point.step, point.value) for point in history]

    losses = [(10, 2.0), (20, 2.0), (30, 2.0), (40, 2.0), (50, 2.0), (40, 1.0), (50, 1.0)]
    assert sorted(curve("tiny", "loss")) == sorted(losses)
    # What was done twice is marked: MLflow forgets no point.
    assert curve("tiny", "generation") == [(40, 1.0)]
    assert runs["tiny"].data.tags["autoexp.rewound"] == "50>40"
    assert curve("tiny", "score/accuracy") == [(50, 0.5)]
    branch = [iteration for iteration, _ in curve("tiny-cd100", "loss")]
    assert sorted(branch) == [*range(110, 110 + 10 * step, 10)]


# W&B


@pytest.fixture
def wandb() -> Any:
    return pytest.importorskip("wandb", reason="wandb is not installed: make test-trackers")


def records(file: Path) -> Iterator[Any]:
    """The records of a `.wandb` file, in the format of LevelDB's logs."""
    from wandb.proto.wandb_internal_pb2 import Record

    raw, place, whole = file.read_bytes(), 7, b""
    assert raw[:4] == b":W&B"
    while place + 7 <= len(raw):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", raw, place + 4)
        if kind == 0:
            break
        whole += raw[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield Record.FromString(whole)
            whole = b""


def test_wandb_offline_leaves_directories_of_one_run_a_job_for_wandb_sync(
    path: Path, wandb: Any
) -> None:
    settings: dict[str, Any] = {"wandb": {"mode": "offline", "project": "lab"}}
    log(path, 10, 20, 30)
    assert send(path, settings) == Sent(tracker="wandb", points=3, jobs=3, problem=None)
    log(path, 20, 30, loss=1.0)
    finish(path)
    assert send(path, settings) == Sent(tracker="wandb", points=2, jobs=1, problem=None)

    folders = sorted((path / "tracking" / "wandb-offline" / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    runs, rows, summary = [], [], {}
    for folder in folders:
        (file,) = folder.glob("*.wandb")
        for record in records(file):
            if record.HasField("run"):
                runs.append(record.run)
            if record.HasField("history"):
                items = {(i.key or i.nested_key[0]): i.value_json for i in record.history.item}
                rows.append(tuple(float(items[k]) for k in ("iteration", "loss", "generation")))
            if record.HasField("summary"):
                summary |= {(i.key or i.nested_key[0]): i.value_json for i in record.summary.update}
    assert {(run.run_id, run.display_name, run.run_group, run.job_type) for run in runs} == {
        ("s1-abcd-tiny", "tiny", "s1", "train")
    }
    assert rows == [(10, 2, 0), (20, 2, 0), (30, 2, 0), (20, 1, 1), (30, 1, 1)]
    assert (summary["state"], summary["rewound"]) == ('"finished"', '"30>20"')
    assert summary["score/accuracy"] == "0.5"


def test_wandb_online_without_a_key_is_a_problem_and_nothing_is_lost(
    path: Path, wandb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(path.parent))
    log(path, 10)
    assert "API key" in str(send(path, {"wandb": {}}).problem)
    assert send(path, {"wandb": {"mode": "offline"}}).points == 1


# TensorBoard


def test_tensorboard_shows_each_iteration_once(path: Path) -> None:
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is not installed: make test-trackers",
    )
    settings = {"tensorboard": "runs"}
    log(path, 10, 20, 30)
    send(path, settings)
    log(path, 20, loss=1.0)
    send(path, settings)
    found = reader.EventAccumulator(str(path.parent / "runs" / "s1" / "tiny"))
    found.Reload()
    assert [(s.step, s.value) for s in found.Scalars("loss")] == [(10, 2.0), (20, 1.0)]
