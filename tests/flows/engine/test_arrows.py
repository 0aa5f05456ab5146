"""What leads to what in the run graph, however late Prefect is."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from prefect import State

from autoexp.flows.engine import subflows
from autoexp.flows.engine.subflows import Subflows
from autoexp.flows.train import train
from autoexp.jobs.spec import JobSpec
from autoexp.session.session import Session
from tests.flows.runs import arrows
from tests.flows.sessions import Make
from tests.patience import until

pytestmark = pytest.mark.prefect

KEEP = "the job behind the cooldown"
STAGE = "stages={keep: {command: ['true'], after: {cd100: finished}}}"


async def test_an_arrow_is_there_though_the_job_before_is_shown_after_the_next_one_has_ended(
    make_session: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_session(STAGE)
    monkeypatch.setattr(subflows, "_RETRY_S", 0.1)
    origins = Subflows._origins

    async def late(self: Subflows, spec: JobSpec) -> Sequence[State[Any]]:
        if spec.name == "demo-cd100":
            await asyncio.to_thread(
                until, lambda: Session.load(path).jobs["demo-keep"].is_over, KEEP
            )
            await asyncio.sleep(1.0)  # a wait with a bound of _RETRY_S is over by then
        return await origins(self, spec)

    monkeypatch.setattr(Subflows, "_origins", late)
    assert (await train(session=path.name, return_state=True)).is_completed()

    expected = {("checkpoint 100", "demo @100"), ("demo @100", "demo-keep")}
    assert await arrows(Session.load(path), expected) >= expected
