"""Sessions as deployments on a worker, with a Prefect server of their own, on a real cluster."""

import os
import signal
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoexp.jobs import Verdict
from autoexp.session import Session
from tests.slurm.bench import clear_queue, slurm, until
from tests.slurm.deployed import ROOT, Deployed, monitor_pid

pytestmark = [pytest.mark.slurm, pytest.mark.prefect]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """From an empty Prefect home to a worker that waits, as docs/login-node.md says."""
    found = Deployed(tmp_path_factory.mktemp("deployed"))
    try:
        found.start_server()
        said = found.command("make", "deploy")
        assert "deployed" in said
        found.command("autoexp", "automations", "install", "--silence", "75")
        found.start_worker()
        yield found
    finally:
        for path in found.sessions.glob("*/session.json"):
            clear_queue(path.parent.name)
        found.close()


def assert_each_job_ran_once(path: Path) -> None:
    session = Session.load(path)
    assert {name: job.verdict for name, job in session.jobs.items()} == {
        "demo": Verdict.FINISHED,
        "demo-cd100": Verdict.FINISHED,
        "demo-cd200": Verdict.FINISHED,
    }
    for job in session.jobs.values():
        (attempt,) = job.attempts
        assert attempt.job_id is not None
        rows = slurm("sacct", "-X", "-n", "-P", "--name", attempt.key, "-o", "JobID").split()
        assert rows == [attempt.job_id]


def refusal(deployed: Deployed, parameters: object) -> str:
    """What the server answers to a run with these parameters, which it must not create."""
    deployment = deployed.ask("GET", "/deployments/name/autoexp/train")["id"]
    before = deployed.ask("POST", "/flow_runs/count", {})
    with pytest.raises(urllib.error.HTTPError) as refused:
        body = {"parameters": parameters}
        deployed.ask("POST", f"/deployments/{deployment}/create_flow_run", body)
    assert 400 <= refused.value.code < 500
    assert deployed.ask("POST", "/flow_runs/count", {}) == before
    return refused.value.read().decode()


def test_the_form_describes_the_experiment_and_refuses_what_is_out_of_bounds(
    deployed: Deployed,
) -> None:
    schema = deployed.ask("GET", "/deployments/name/autoexp/train")["parameter_openapi_schema"]
    arguments = schema["definitions"]["DemoArgs"]["properties"]
    assert arguments["train_iters"] == {
        "default": 2000,
        "description": "iterations of the trunk",
        "exclusiveMinimum": 0,
        "title": "Train Iters",
        "type": "integer",
    }
    # Prefect's form offers a choice for `anyOf`, and nothing for `oneOf`.
    assert "oneOf" not in str(schema)
    form = {"project": {"name": "mine"}, "backend": {"kind": "demo"}, "slurm": {"kind": "local"}}
    wrong = {**form, "backend": {"kind": "demo", "args": {"train_iters": -5}}}
    assert "experiment.backend.args.train_iters" in refusal(deployed, {"experiment": wrong})
    assert "experiment.project.name" in refusal(
        deployed, {"experiment": {**form, "project": {"name": "two words"}}}
    )
    assert "config" in refusal(deployed, {"config": 3})


def test_a_session_killed_under_the_worker_goes_on_in_the_same_flow_run(
    deployed: Deployed,
) -> None:
    flow_run_id = deployed.run("backend.args.sleep_per_iteration_ms=60")
    path = deployed.session(flow_run_id)
    deployed.seen(path, "checkpoint/demo/50")
    first = monitor_pid(path)
    os.kill(first, signal.SIGKILL)

    ended = deployed.ended(flow_run_id)

    assert ended["state_type"] == "COMPLETED", ended["state"]
    assert ended["run_count"] >= 2
    assert Session.load(path).meta.flow_run_ids == [flow_run_id]
    assert_each_job_ran_once(path)
    names = sorted(run["name"] for run in deployed.subflows(flow_run_id))
    assert names == ["cooldown demo @100", "cooldown demo @200", "train demo"]
    states = {run["name"]: run["state_type"] for run in deployed.subflows(flow_run_id)}
    assert set(states.values()) == {"COMPLETED"}, states
    assert ended["name"] == f"session {path.name}"
    assert {"autoexp", f"session:{path.name}", "project:demo"} <= set(ended["tags"])
    assert "cluster:autoexp" in ended["tags"]


def test_cancelling_through_the_api_cancels_the_slurm_jobs(deployed: Deployed) -> None:
    flow_run_id = deployed.run("backend.args.sleep_per_iteration_ms=200")
    path = deployed.session(flow_run_id)
    deployed.seen(path, "state/demo/a1/1/RUNNING")
    body = {"state": {"type": "CANCELLING"}, "force": True}
    deployed.ask("POST", f"/flow_runs/{flow_run_id}/set_state", body)

    def gone() -> bool:
        rows = slurm("squeue", "-h", "-o", "%j %T").splitlines()
        return not any(row.startswith(path.name) for row in rows)

    asked = time.monotonic()
    until(gone, "the end of the jobs", seconds=60)
    ended = deployed.ended(flow_run_id)

    print(f"the jobs were gone {time.monotonic() - asked:.1f} s after the request")
    assert ended["state_type"] == "CANCELLED"
    logs = deployed.ask(
        "POST", "/logs/filter", {"logs": {"flow_run_id": {"any_": [flow_run_id]}}, "limit": 200}
    )
    said = [entry["message"] for entry in logs if entry["message"].startswith("cancel ")]
    assert len(said) == 1, said
    assert path.name in said[0]
    assert Session.load(path).jobs["demo"].state == "CANCELLED"
    assert {run["state_type"] for run in deployed.subflows(flow_run_id)} == {"CANCELLED"}


def test_the_checkout_is_where_deployments_run(deployed: Deployed) -> None:
    for name in ("autoexp/train", "autoexp-cooldown/cooldown", "autoexp-resume/resume"):
        steps = deployed.ask("GET", f"/deployments/name/{name}")["pull_steps"]
        (step,) = steps
        assert step["prefect.deployments.steps.set_working_directory"]["directory"] == str(ROOT)


@pytest.mark.slow
def test_a_session_goes_on_when_its_worker_is_killed(deployed: Deployed) -> None:
    flow_run_id = deployed.run("backend.args.sleep_per_iteration_ms=40")
    path = deployed.session(flow_run_id)
    deployed.seen(path, "checkpoint/demo/50")
    first = monitor_pid(path)
    deployed.kill_worker(signal.SIGKILL)
    assert monitor_pid(path) == first

    ended = deployed.ended(flow_run_id)

    deployed.start_worker()
    assert (ended["state_type"], ended["run_count"]) == ("COMPLETED", 1), ended["state"]
    assert_each_job_ran_once(path)


@pytest.mark.slow
def test_a_stopped_worker_cancels_nothing_and_the_next_one_takes_the_session_up(
    deployed: Deployed,
) -> None:
    flow_run_id = deployed.run("backend.args.sleep_per_iteration_ms=200")
    path = deployed.session(flow_run_id)
    deployed.seen(path, "checkpoint/demo/50")
    first = monitor_pid(path)
    deployed.kill_worker(signal.SIGTERM)

    until(lambda: not Path(f"/proc/{first}").exists(), "the end of the flow's process", seconds=60)
    rows = slurm("squeue", "-h", "-o", "%j %T").splitlines()
    assert f"{path.name}-demo-a1 RUNNING" in rows
    deployed.start_worker()
    ended = deployed.ended(flow_run_id, seconds=200)

    assert ended["state_type"] == "COMPLETED", ended["state"]
    assert Session.load(path).meta.flow_run_ids == [flow_run_id]
    assert_each_job_ran_once(path)


@pytest.mark.slow
def test_a_server_that_is_away_for_a_minute_changes_nothing_about_the_end(
    deployed: Deployed,
) -> None:
    flow_run_id = deployed.run("backend.args.sleep_per_iteration_ms=100")
    path = deployed.session(flow_run_id)
    deployed.seen(path, "checkpoint/demo/50")
    deployed.stop_server()
    # Both cooldowns start, and all jobs end, while nobody can be told.
    deployed.seen(path, "verdict/demo-cd200/a1", seconds=120)
    time.sleep(20)
    deployed.start_server()
    ended = deployed.ended(flow_run_id, seconds=120)

    assert ended["state_type"] == "COMPLETED", ended["state"]
    assert ended["run_count"] == 1
    assert_each_job_ran_once(path)
    states = {run["name"]: run["state_type"] for run in deployed.subflows(flow_run_id)}
    assert states["train demo"] == "COMPLETED"
    page = deployed.artifact(f"{path.name}-session")
    assert f"# {path.name}: finished" in page["data"]
    assert "demo-cd200 attempt 1: finished" in page["data"]
