"""What people read in Prefect: warnings of the scheduler, and of jobs what is true of them."""

import logging

import pytest
from prefect import flow, get_run_logger

from autoexp.backends.demo import DemoBackend
from autoexp.jobs import JobRecord
from autoexp.machines import SlurmCluster
from autoexp.monitor import JobView
from autoexp.schedulers.slurm import SlurmScheduler
from flows.automations import recovery
from flows.cooldown import final_state
from flows.scheduler_log import forwarded
from tests.core.conftest import attempt_of, spec_of


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
                scheduler._say("SLURM does not know a node n7")
                scheduler._say("SLURM does not know a node n7")

        session()
    finally:
        runs.removeHandler(handler)
    (record,) = [r for r in found if "n7" in r.getMessage()]
    assert (record.name, record.levelname) == ("prefect.flow_runs", "WARNING")
    assert hasattr(record, "flow_run_id")
    # Nor does it go to the terminal a second time, under its own name.
    assert not any(r.name.startswith("autoexp") for r in caplog.records)
    assert logging.getLogger("autoexp.schedulers").propagate


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
