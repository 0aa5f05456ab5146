"""A session that somebody watches is taken up by no other run, whatever starts it."""

import pytest
import yaml
from prefect import get_client

from autoexp.flows.deployment import deploy
from autoexp.flows.resume import resume
from autoexp.flows.train import train
from autoexp.session.session import Session
from tests.flows.commands import interrupt, start_monitor, wait_until_running
from tests.flows.sessions import Make, hold_back

pytestmark = pytest.mark.prefect


async def test_a_second_run_of_a_session_fails_at_once_with_who_watches_it_and_changes_nothing(
    make_session: Make,
) -> None:
    path = make_session("cooldowns=[]")
    hold_back(path)
    monitor = start_monitor(path)
    wait_until_running(path)
    before = Session.load(path)

    for second in (resume, train):
        state = await second(session=path.name, return_state=True)  # type: ignore[var-annotated]

        assert state.is_failed(), state
        assert f"held by the monitor with pid {monitor.pid}" in (state.message or "")
    after = Session.load(path)
    assert after.meta.flow_run_ids == before.meta.flow_run_ids
    assert [len(job.attempts) for job in after.jobs.values()] == [1]
    assert monitor.poll() is None
    async with get_client() as client:
        (own,) = before.meta.flow_run_ids
        watched = await client.read_flow_run(own)  # type: ignore[arg-type]
    assert watched.state is not None and watched.state.is_running()
    interrupt(monitor)


def test_each_deployment_has_the_version_of_its_commit_and_none_counts_sessions() -> None:
    entries = yaml.safe_load(deploy._SHIPPED.read_text())["deployments"]

    assert {entry["version"] for entry in entries} == {"{{ commit.stdout }}"}
    # One limit for all sessions: two of them could not be resumed at the same time.
    assert not [entry["name"] for entry in entries if "concurrency_limit" in entry]
