"""What people read in Prefect: warnings of the scheduler, and of jobs what is true of them."""

import logging
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, get_run_logger

from autoexp.backends.demo import DemoBackend
from autoexp.config.compose import compose
from autoexp.errors import SessionError
from autoexp.flows.deployment.automations import recovery
from autoexp.flows.engine import lifecycle
from autoexp.flows.engine.lifecycle import forwarded
from autoexp.flows.engine.subflows import final_state
from autoexp.jobs.record import JobRecord
from autoexp.monitor.worklist import JobView
from autoexp.operations import action_runs
from autoexp.resources.machines import SlurmCluster
from autoexp.schedulers.slurm.scheduler import SlurmScheduler
from autoexp.tasks import effects
from tests.builders import attempt_of, spec_of


def test_a_warning_of_the_scheduler_stands_once_in_the_flow_runs_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scheduler = SlurmScheduler(SlurmCluster())
    runs, handler, found = logging.getLogger("prefect.flow_runs"), logging.Handler(), []
    handler.emit = found.append  # type: ignore[method-assign]
    runs.addHandler(handler)
    try:

        @flow
        def session() -> None:
            with forwarded(get_run_logger()):
                scheduler._warn_once("SLURM does not know a node n7")
                scheduler._warn_once("SLURM does not know a node n7")

        session()
    finally:
        runs.removeHandler(handler)
    (record,) = [r for r in found if "n7" in r.getMessage()]
    assert (record.name, record.levelname) == ("prefect.flow_runs", "WARNING")
    assert hasattr(record, "flow_run_id")
    # Nor does it go to the terminal a second time, under its own name.
    assert not any(r.name.startswith("autoexp") for r in caplog.records)
    assert logging.getLogger("autoexp.schedulers").propagate


async def test_no_escape_reaches_a_flow_runs_log_or_the_name_of_a_task_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hostile = "x\x1b[2J\x9b\u202e\n"

    @flow
    async def session() -> None:
        get_run_logger().warning("said %s", hostile)
        published = action_runs.Publication(f"e {hostile}", "s", {})
        await effects.TASKS[type(published)](published, None)

    async def write() -> str:
        return hostile

    @flow
    async def asking() -> None:
        await effects.request(f"ask {hostile}", write)

    await session()
    await asking()
    said = [record.getMessage() for record in caplog.records]
    assert "said x\\x9b\\u202e\n" in said
    assert "ask x\\x9b\\u202e\n: x\\x9b\\u202e\n" in said
    titles = {getattr(record, "task_run_name", None) for record in caplog.records}
    assert "ask x\\x9b\\u202e" in titles
    assert not [text for text in said if {"\x1b", "\x9b", "\u202e"} & set(text)]


async def test_no_escape_reaches_the_state_of_what_fails(tmp_path: Path) -> None:
    hostile = "x\x1b[2J\x9b\u202e"

    async def write() -> str:
        raise SessionError(hostile)

    @flow
    async def fails(how: str) -> Any:
        match how:
            case "task":
                return await effects.request("ask", write)
            case "session":
                return await lifecycle.watch(tmp_path / hostile)
        return await lifecycle.create_and_watch(lambda: compose(hostile, []))

    for how in ("task", "session", "new"):
        message = str((await fails(how, return_state=True)).message)
        assert "x\\x9b\\u202e" in message
        assert not {"\x1b", "\x9b", "\u202e"} & set(message)


@pytest.mark.parametrize(
    ("attempts", "said"), [(1, "the job keeps running"), (0, "no job of it is running")]
)
def test_a_subflow_of_a_stopped_monitor_says_that_its_job_runs_only_where_it_does(
    attempts: int, said: str
) -> None:
    job = JobRecord(spec=spec_of("x", backend=DemoBackend()), attempts=[attempt_of()] * attempts)
    assert said in str(final_state(JobView.of(job)).message)


def test_an_automation_promises_nothing_of_jobs_that_were_never_submitted() -> None:
    said = [str(action) for automation in recovery(60.0) for action in automation.actions]
    assert not any("jobs keep running" in text for text in said)
