"""An outage of the scheduler or of Prefect, however long, ends nothing and is told once."""

import asyncio
import logging
import time

import httpx
import pytest
from prefect.exceptions import ObjectNotFound

from autoexp.errors import SchedulerUnavailable
from autoexp.flows.concurrency.children import Children
from autoexp.flows.concurrency.outbox import Outage
from autoexp.flows.engine import poller
from autoexp.schedulers.base import AttemptRef
from autoexp.schedulers.local import LocalScheduler


async def test_two_thousand_missed_queries_in_a_row_are_backed_off_from_and_answered_at_last(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    misses, waits, seconds = 2000, [], [0.0]

    class Away(LocalScheduler):
        def query(self, refs: object) -> dict[str, object]:  # type: ignore[override]
            nonlocal misses
            misses -= 1
            if misses >= 0:
                raise SchedulerUnavailable("Unable to contact slurm controller")
            return {}

    async def here(function: object, *arguments: object) -> object:
        return function(*arguments)  # type: ignore[operator]

    monkeypatch.setattr(asyncio, "to_thread", here)
    monkeypatch.setattr(poller.time, "monotonic", lambda: seconds[0])
    log = logging.getLogger("outage")
    asked = poller.SchedulerPoller(Away(), 15.0, log)
    while misses >= 0:
        async with Children(log) as children:
            asked.poll(children, [AttemptRef("k", None, "k", "batch.sh", "1")])  # type: ignore[arg-type]
        waits.append(asked._next_at - seconds[0])
        seconds[0] = asked._next_at
        assert asked.is_due
    assert max(waits) <= 300 * 1.2
    assert waits[-1] == 15.0
    first, last = caplog.messages
    assert "no answer from the scheduler" in first
    assert "after 2000 misses" in last


def test_what_was_on_its_way_when_something_was_refused_is_no_answer_after_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outage, sent_before = Outage(logging.getLogger("outage")), time.monotonic()
    outage.note_refused("a log line", ConnectionError("refused"))
    outage.note_taken("the artifacts", sent_before)
    outage.note_refused("a state", ConnectionError("refused"))
    assert len(caplog.records) == 1
    outage.note_taken("the artifacts", time.monotonic())
    assert caplog.messages[1:] == ["Prefect answers again, after 2 failures"]


def lost_run(status: int) -> Exception:
    """What Prefect's client raises of a run that its server does not know."""
    request = httpx.Request("POST", "http://127.0.0.1/api/flow_runs/1/set_state")
    answer = httpx.HTTPStatusError("", request=request, response=httpx.Response(status))
    lost = ObjectNotFound(answer)
    lost.__cause__ = answer
    return lost


@pytest.mark.parametrize("status", [404, 409])
def test_a_server_that_has_lost_a_run_does_not_answer_again_by_taking_something_else(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    lost = lost_run(status)
    outage = Outage(logging.getLogger("outage"))
    outage.note_refused("`demo`", lost)
    outage.note_taken("the artifacts", time.monotonic())
    outage.note_refused("`demo-cd100`", lost)
    assert len(caplog.records) == 1
    for what in ("`demo`", "`demo-cd100`"):
        outage.note_taken(what, time.monotonic())
    assert caplog.messages[1:] == ["Prefect answers again, after 2 failures"]


def test_an_outage_after_a_loss_is_told_though_what_was_lost_is_never_sent_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outage = Outage(logging.getLogger("outage"))
    outage.note_refused("`demo`", lost_run(404))
    outage.note_taken("the artifacts", time.monotonic())
    outage.note_refused("the artifacts", ConnectionError("refused"))
    outage.note_taken("the artifacts", time.monotonic())
    loss, away, back = caplog.messages
    assert "did not take `demo`" in loss and "did not take the artifacts" in away
    assert back == "Prefect answers again, after 1 failures"


async def test_a_child_that_raises_ends_neither_its_siblings_nor_the_loop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ended = []

    async def raises(error: BaseException) -> None:
        raise error

    async def goes_on() -> None:
        await asyncio.sleep(0)
        ended.append("sibling")

    class Signal(BaseException):
        """As Prefect's own signals are."""

    async with Children(logging.getLogger("children")) as children:
        children.spawn("train demo", raises(RuntimeError("out of the blue")))
        children.spawn("cooldown", raises(Signal()))
        children.spawn("cancelled", raises(asyncio.CancelledError()))
        children.spawn("sibling", goes_on())
    assert ended == ["sibling"]
    assert [line.partition(":")[0] for line in caplog.messages] == ["train demo", "cooldown"]
