"""Sessions that an earlier autoexp made (tests/data/recorded) are read and resumed by this one."""

import logging
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from autoexp.monitor.monitor import Monitor
from autoexp.operations import action_runs, requests
from autoexp.operations.phases import Phase, Phases, do, in_turns
from autoexp.operations.step_runs import carry_out
from autoexp.reports.explain import explain_job
from autoexp.reports.results import compared
from autoexp.reports.status import status_of
from autoexp.rules.describe import describe
from autoexp.schedulers.base import AttemptRef, SubmitOptions
from autoexp.schedulers.local import LocalScheduler
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.processes import WaitFor
from tests.sources import ROOT

RECORDED = ROOT / "tests" / "data" / "recorded"
FINISHED, INTERRUPTED, REGISTERED = "recorded-1129-6cxm", "interrupted-1129-7auj", "registered"
_LOG = logging.getLogger(__name__)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The sessions root as it was recorded, in a place of this machine."""
    places = {b"@ROOT@": tmp_path / "root", b"@OUTPUT@": tmp_path / "output"}
    filled = {**places, b"@PYTHON@": Path(sys.executable)}
    shutil.copytree(RECORDED, tmp_path, dirs_exist_ok=True)
    past = time.time() - 24 * 3600
    for path in (*tmp_path.rglob("*"), *places.values()):
        path.chmod(0o700 if path.is_dir() else 0o600)
        if path.is_file():
            content = path.read_bytes()
            for place, found in filled.items():
                content = content.replace(place, os.fsencode(found))
            path.write_bytes(content)
            os.utime(path, (past, past))  # whoever wrote it has long been silent
    return tmp_path / "root"


class CountingScheduler(LocalScheduler):
    """This machine, and the keys of the attempts that were submitted to it."""

    def __init__(self) -> None:
        super().__init__()
        self.submitted: list[str] = []

    def submit(self, ref: AttemptRef, options: SubmitOptions, lock: int) -> str:
        self.submitted.append(ref.key)
        return super().submit(ref, options, lock)


def resume(path: Path, wait_for: WaitFor) -> CountingScheduler:
    """Carry on with a session until it is over; the steps and the actions are the real ones."""
    scheduler = CountingScheduler()
    with Session.hold(path) as (session, _):
        monitor = Monitor(session)

        def do_one(phase: Phase) -> Any:
            # The flow runs it through prefect-shell, and records what it prints.
            return "" if isinstance(phase, action_runs.CommandRun) else do(phase, scheduler)

        def exhaust(phases: Phases) -> None:
            for _ in in_turns(phases, do_one):
                pass

        def tick() -> bool:
            monitor.recorder.apply(requests.process_requests)
            monitor.look(scheduler.query(monitor.refs()))
            work = monitor.worklist.next_work()
            while work.steps or work.actions:
                for action in work.actions:
                    exhaust(action_runs.carry_out(action, monitor, _LOG))
                for step in work.steps:
                    exhaust(carry_out(step, monitor, _LOG))
                work = monitor.worklist.next_work(after_look=False)
            return work.is_over

        wait_for(tick, f"the end of {path.name}")
    return scheduler


@pytest.mark.parametrize("name", [FINISHED, INTERRUPTED, REGISTERED])
def test_a_recorded_session_is_read_and_not_changed(root: Path, name: str) -> None:
    path = root / name
    before = _files(path)
    session = Session.load(path)
    shown = status_of(session)
    assert [job.name for job in shown.jobs] == list(session.jobs) == session.meta.jobs
    assert all(explain_job(path, job).sentences for job in session.jobs)
    assert all(describe(entry.event) for entry in session.journal.entries)
    assert [row["job"] for row in compared([session])]
    assert _files(path) == before


def test_a_recorded_session_has_the_numbers_that_it_had(root: Path) -> None:
    session = Session.load(root / FINISHED)
    assert {
        job.name: (job.verdict, job.iteration, job.loss) for job in status_of(session).jobs
    } == {
        "recorded": ("finished", 60, 3.177063),
        "recorded-cd20": ("finished", 30, 3.246459),
        "recorded-cd40": ("finished", 50, 3.18064),
        "recorded-keep": ("finished", None, None),
    }
    assert len(session.journal.entries) == 18
    assert len(session.actions) == 5 and not session.actions.pending


def test_a_session_that_was_over_is_over_when_it_is_resumed(root: Path, wait_for: WaitFor) -> None:
    assert resume(root / FINISHED, wait_for).submitted == []


def test_a_recorded_session_whose_monitor_was_killed_is_resumed_to_its_end(
    root: Path, wait_for: WaitFor, no_survivors: None
) -> None:
    path = root / INTERRUPTED
    assert Session.load(path).jobs["interrupted-cd20"].state == "RUNNING"

    scheduler = resume(path, wait_for)

    session = Session.load(path)
    assert {job.verdict for job in session.jobs.values()} == {Verdict.FINISHED}
    assert {job.iteration for job in session.jobs.values()} == {60, 30, 50, None}
    # Two jobs had been submitted by the monitor of before, and ended while nobody watched.
    keys = {name: [a.key for a in job.attempts] for name, job in session.jobs.items()}
    assert {len(each) for each in keys.values()} == {1}
    new = ("interrupted-cd40", "interrupted-keep")
    assert sorted(scheduler.submitted) == sorted(keys[name][0] for name in new)
    assert {action.status for action in session.actions.values()} == {"done"}
    seen = [entry.event.key for entry in session.journal.entries]
    assert len(seen) == len(set(seen))
    assert "log/interrupted/a1/half" in seen


def _files(path: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
