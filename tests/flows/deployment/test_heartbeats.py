"""Heartbeats of a session behind a proxy that passes no web socket: no stream of events."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from prefect import get_client

from autoexp.flows.train import train
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.flows.between import Between, standing_between
from tests.flows.sessions import Make, hold_back
from tests.patience import PATIENCE_S, until
from tests.sources import ROOT

pytestmark = pytest.mark.prefect

BEAT = "prefect.flow-run.heartbeat"
EVERY_S = "30"  # the shortest that Prefect takes


@pytest.fixture
def between() -> Iterator[Between]:
    with standing_between() as found:
        yield found


def test_heartbeats_arrive_though_the_stream_of_events_has_stopped(
    make_session: Make, between: Between
) -> None:
    path = make_session("cooldowns=[]")
    gate = hold_back(path)
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(train, parameters={"session": path.name})

        def events(name: str) -> list[dict[str, Any]]:
            wanted = {"event": {"name": [name]}, "resource": {"id": [f"prefect.flow-run.{run.id}"]}}
            answer = client.request("POST", "/events/filter", json={"filter": wanted})
            found: list[dict[str, Any]] = answer.json()["events"]
            return found

        # As a worker starts it.
        command = [sys.executable, "-m", "prefect.flow_engine", "autoexp.flows.train.train"]
        flow = subprocess.Popen(
            command,
            env={
                **os.environ,
                "AUTOEXP_SESSIONS": str(path.parent),
                "PREFECT_API_URL": between.url,
                "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": EVERY_S,
                "PREFECT__FLOW_RUN_ID": str(run.id),
                "PREFECT__FLOW_ENTRYPOINT": "autoexp.flows.train.train",
            },
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            until(lambda: events(BEAT), "a heartbeat of a session that lives")
            gate.touch()
            assert flow.wait(PATIENCE_S) == 0
        finally:
            flow.kill()
            flow.wait()
        assert not events("prefect.flow-run.Crashed")
    assert [job.verdict for job in Session.load(path).jobs.values()] == [Verdict.FINISHED]
