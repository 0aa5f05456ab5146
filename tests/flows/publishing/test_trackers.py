"""Curves go to trackers beside the loop: whatever a pass does, no look waits for it."""

import asyncio
import logging
import os
import sys
from pathlib import Path

import pytest

from autoexp.flows.concurrency.children import Children, Updates
from autoexp.flows.publishing import trackers
from autoexp.flows.publishing.trackers import Trackers
from autoexp.flows.train import train
from autoexp.session.session import Session
from autoexp.storage import metrics_file
from autoexp.tracking.settings import Tracking
from tests.event_files import events
from tests.flows.commands import autoexp
from tests.flows.sessions import Make
from tests.patience import until

TENSORBOARD = Tracking(tensorboard="runs", every=0.1)


def drawn(path: Path, job: str) -> list[int]:
    """The iterations of a job's curve, as its event file has them."""
    folder = path.parent / "runs" / path.name / job
    return [
        event.step for event in events(folder) if any(v.tag == "loss" for v in event.summary.value)
    ]


@pytest.mark.prefect
async def test_the_curves_of_a_session_are_with_its_tracker_when_it_is_over(
    make_session: Make,
) -> None:
    path = make_session("tracking.tensorboard=runs", "tracking.every=1")
    state = await train(session=path.name, return_state=True)
    assert state.type.value == "COMPLETED"
    for job in Session.load(path).jobs:
        assert drawn(path, job) == [row.iteration for row in metrics_file.read(path, job)], job


@pytest.mark.prefect
async def test_a_tracker_that_is_away_ends_nothing_and_the_command_catches_up(
    make_session: Make, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_session("tracking.tensorboard=runs", "tracking.every=1", "cooldowns=[]")
    (path.parent / "runs").write_text("a file where the folder belongs")
    state = await train(session=path.name, return_state=True)
    assert state.type.value == "COMPLETED"
    said = [r.getMessage() for r in caplog.records if r.getMessage().startswith("tracking")]
    assert len(said) == 2, said
    assert "it is tried again" in said[0] and f"autoexp track {path.name}" in said[1]

    (path.parent / "runs").unlink()
    answer = autoexp("track", path.name, root=path.parent)
    assert answer.returncode == 0, answer.stderr
    assert drawn(path, "demo") == [row.iteration for row in metrics_file.read(path, "demo")]


def playing(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Have a pass run a script in the place of `autoexp track`."""
    monkeypatch.setattr(trackers, "command", lambda session: (sys.executable, "-c", script))


async def test_a_pass_that_hangs_holds_up_neither_a_look_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = tmp_path / "pid"
    playing(
        monkeypatch,
        f"import os, pathlib, time; pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); "
        "time.sleep(1000)",
    )
    monkeypatch.setattr(trackers, "_FIRST_S", 0.0)
    updates = Updates()
    sender = Trackers(tmp_path, TENSORBOARD, updates, logging.getLogger(__name__))
    async with Children(logging.getLogger(__name__)) as children:
        sender.send_if_due(children)
        await asyncio.to_thread(until, lambda: pid.exists() and pid.read_text(), "the pass runs")
        sender.note({"demo"})
        assert sender.due_at == float("inf")  # one at a time
        updates.interrupt("Ctrl-C")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


async def test_a_problem_is_one_warning_and_so_is_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    updates, log = Updates(), logging.getLogger(__name__)
    monkeypatch.setattr(trackers, "_FIRST_S", 0.0)
    sender = Trackers(tmp_path, Tracking(tensorboard="runs", every=1e-9), updates, log)
    away = '[{"tracker": "mlflow", "points": 0, "jobs": 0, "problem": "no answer\\u001b[2J"}]'
    well = '[{"tracker": "mlflow", "points": 1, "jobs": 1, "problem": null}]'
    for script in (
        f"print({away!r})",
        f"print({away!r})",
        "raise SystemExit('lost')",
        f"print({well!r})",
    ):
        playing(monkeypatch, script)
        async with Children(log) as children:
            sender.note({"demo"})
            sender.send_if_due(children)
    said = [record.getMessage() for record in caplog.records]
    assert [text.partition(";")[0] for text in said] == [
        "tracking.mlflow: no answer",
        "tracking.pass: lost",
        "tracking.pass: goes on",
        "tracking.mlflow: goes on",
    ]


async def test_nothing_is_begun_without_trackers_and_without_news(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "command", lambda session: pytest.fail("a pass began"))
    for settings in (None, TENSORBOARD):
        sender = Trackers(tmp_path, settings, Updates(), logging.getLogger(__name__))
        sender.note(set())
        async with Children(logging.getLogger(__name__)) as children:
            sender.send_if_due(children)
