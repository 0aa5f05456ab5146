"""Sessions as deployments on a worker, with a Prefect server of their own, on a real cluster."""

import json
import os
import signal
import time
import urllib.error
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.patience import until
from tests.slurm.bench import clear_queue, slurm
from tests.slurm.browser import CHROMIUM, open_page
from tests.slurm.deployed import ROOT, Deployed, Listener, monitor_pid

_DEPLOYMENTS = (
    *("autoexp-train/train", "autoexp-cooldown/cooldown"),
    *("autoexp-evaluate/evaluate", "autoexp-branch/branch", "autoexp-resume/resume"),
)
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
        for path in found.sessions.glob("[!.]*/session.json"):
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
    deployment = deployed.ask("GET", "/deployments/name/autoexp-train/train")["id"]
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
    deployment = deployed.ask("GET", "/deployments/name/autoexp-train/train")
    schema = deployment["parameter_openapi_schema"]
    arguments = schema["definitions"]["DemoArgs"]["properties"]
    assert arguments["train_iters"] == {
        "default": 2000,
        "description": "iterations of the trunk",
        "exclusiveMinimum": 0,
        "title": "Train Iters",
        "type": "integer",
    }
    # Prefect's form offers a choice for `anyOf`, and nothing for `oneOf`.
    assert "'oneOf'" not in str(schema)
    form = {"project": {"name": "mine"}, "backend": {"kind": "demo"}, "slurm": {"kind": "local"}}
    wrong = {**form, "backend": {"kind": "demo", "args": {"train_iters": -5}}}
    told = refusal(deployed, {"experiment": wrong})
    # Of a choice, Prefect's check says only that none of its kinds fits.
    assert "experiment.backend" in told
    assert "-5" in told
    hasty = {**form, "monitoring": {"file_tick_s": 0}}
    assert "experiment.monitoring.file_tick_s" in refusal(deployed, {"experiment": hasty})
    assert "experiment.project.name" in refusal(
        deployed, {"experiment": {**form, "project": {"name": "two words"}}}
    )
    assert "config" in refusal(deployed, {"config": 3})


@pytest.fixture(scope="module")
def killed(deployed: Deployed) -> tuple[str, Path]:
    """A session whose process was killed in the middle: the flow run's id, and its directory."""
    flow_run_id = deployed.run("backend.args.sleep_per_iteration_ms=60")
    path = deployed.session(flow_run_id)
    deployed.seen(path, "checkpoint/demo/50")
    os.kill(monitor_pid(path), signal.SIGKILL)
    return flow_run_id, path


def test_cancelling_through_the_api_cancels_the_slurm_jobs(
    deployed: Deployed, killed: tuple[str, Path]
) -> None:
    del killed  # the server needs some minutes to miss it: it is asked for below
    flow_run_id = deployed.run("backend.args.sleep_per_iteration_ms=1000")
    path = deployed.session(flow_run_id)
    deployed.seen(path, "state/demo/a1/1/RUNNING")
    body = {"state": {"type": "CANCELLING"}, "force": True}
    deployed.ask("POST", f"/flow_runs/{flow_run_id}/set_state", body)

    def gone() -> bool:
        rows = slurm("squeue", "-h", "-o", "%j %T").splitlines()
        return not any(row.startswith(path.name) for row in rows)

    asked = time.monotonic()
    until(gone, "the end of the jobs")
    ended = deployed.ended(flow_run_id)

    print(f"the jobs were gone {time.monotonic() - asked:.1f} s after the request")
    assert ended["state_type"] == "CANCELLED"

    def answers() -> list[str]:
        body = {"logs": {"flow_run_id": {"any_": [flow_run_id]}}, "limit": 200}
        logs = deployed.ask("POST", "/logs/filter", body)
        return [entry["message"] for entry in logs if entry["message"].startswith("cancel ")]

    said = until(answers, "SLURM's answer in the run's log")
    assert len(said) == 1, said
    assert path.name in said[0]
    assert Session.load(path).jobs["demo"].state == "CANCELLED"
    # The request may have come before the training's subflow was drawn: then there is none.
    assert {run["state_type"] for run in deployed.subflows(flow_run_id)} <= {"CANCELLED"}


def test_runs_work_in_the_directory_that_they_were_deployed_from(deployed: Deployed) -> None:
    for name in _DEPLOYMENTS:
        steps = deployed.ask("GET", f"/deployments/name/{name}")["pull_steps"]
        (step,) = steps
        assert step["prefect.deployments.steps.set_working_directory"]["directory"] == str(ROOT)


@pytest.fixture(scope="module")
def survivor(deployed: Deployed, killed: tuple[str, Path]) -> tuple[str, Path]:
    """The killed session, ended."""
    deployed.ended(killed[0])
    return killed


def test_a_session_killed_under_the_worker_goes_on_in_the_same_flow_run(
    deployed: Deployed, survivor: tuple[str, Path]
) -> None:
    flow_run_id, path = survivor
    ended = deployed.flow_run(flow_run_id)

    assert ended["state_type"] == "COMPLETED", ended["state"]["message"]
    assert ended["run_count"] >= 2
    assert Session.load(path).meta.flow_run_ids == [flow_run_id]
    assert_each_job_ran_once(path)
    names = sorted(run["name"] for run in deployed.subflows(flow_run_id))
    assert names == ["demo", "demo @100", "demo @200"]
    states = {run["name"]: run["state_type"] for run in deployed.subflows(flow_run_id)}
    assert set(states.values()) == {"COMPLETED"}, states
    assert ended["name"] == f"session {path.name}"
    assert {"autoexp", f"session:{path.name}", "project:demo"} <= set(ended["tags"])
    assert "cluster:local_cluster" in ended["tags"]


def test_what_happens_is_told_as_events_about_jobs_and_sessions(
    deployed: Deployed, survivor: tuple[str, Path]
) -> None:
    _, path = survivor

    def names() -> list[str]:
        return [event["event"] for event in deployed.events(path.name)]

    # The server writes them down some seconds later.
    until(lambda: "autoexp.cooldowns.finished" in names(), "the last event")
    told = deployed.events(path.name)
    counts = Counter(event["event"] for event in told)
    # What was news to the process that was killed may be told by it, or not at all.
    assert counts["autoexp.checkpoint.saved"] >= 6
    assert counts["autoexp.cooldown.launched"] == 2
    assert counts["autoexp.job.finished"] == 3
    assert counts["autoexp.cooldowns.finished"] == 1
    launched = {
        event["resource"]["prefect.resource.id"]
        for event in told
        if event["event"] == "autoexp.cooldown.launched"
    }
    assert launched == {f"autoexp.job.{path.name}.demo-cd{n}" for n in (100, 200)}


@pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt-get install chromium")
def test_the_pages_show_the_session_in_a_real_browser(
    deployed: Deployed, survivor: tuple[str, Path], tmp_path: Path
) -> None:
    flow_run_id, path = survivor
    pictures = Path(os.environ.get("AUTOEXP_TEST_PICTURES", tmp_path))

    run = open_page(deployed.page(f"/runs/flow-run/{flow_run_id}"), pictures / "run.png")
    assert f"session {path.name}" in run
    assert "Completed" in run
    assert "slurm-login" in run

    plot = deployed.artifact(f"{path.name}-plot")["id"]
    shown = open_page(deployed.page(f"/artifacts/artifact/{plot}"), pictures / "artifact.png")
    assert f"loss and learning rate of {path.name}" in shown
    assert "data:image/png;base64," in shown

    page = deployed.artifact(f"{path.name}-session")["id"]
    shown = open_page(deployed.page(f"/artifacts/artifact/{page}"), pictures / "page.png")
    assert "demo-cd200 attempt 1: finished (reached iteration 250)" in shown

    deployment = deployed.ask("GET", "/deployments/name/autoexp-train/train")["id"]
    form = {"project": {"name": "mine"}, "backend": {"kind": "demo"}, "slurm": {"kind": "slurm"}}
    filled = quote(json.dumps({"experiment": form}))
    url = deployed.page(f"/deployments/deployment/{deployment}/run?parameters={filled}")
    shown = open_page(url, pictures / "form.png", height=1500)
    assert "names the session and the trunk's job" in shown
    assert "iterations of the trunk" in shown
    assert "peak learning rate, constant after the warm-up" in shown


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
    assert (ended["state_type"], ended["run_count"]) == ("COMPLETED", 1), ended["state"]["message"]
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

    until(lambda: not Path(f"/proc/{first}").exists(), "the end of the flow's process")
    rows = slurm("squeue", "-h", "-o", "%j %T").splitlines()
    assert f"{Session.load(path).meta.key('demo', 1)} RUNNING" in rows
    deployed.start_worker()
    ended = deployed.ended(flow_run_id)

    assert ended["state_type"] == "COMPLETED", ended["state"]["message"]
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
    deployed.seen(path, "verdict/demo-cd200/a1")
    time.sleep(20)
    deployed.start_server()
    ended = deployed.ended(flow_run_id)

    assert ended["state_type"] == "COMPLETED", ended["state"]["message"]
    assert ended["run_count"] == 1
    assert_each_job_ran_once(path)
    states = {run["name"]: run["state_type"] for run in deployed.subflows(flow_run_id)}
    assert states["demo"] == "COMPLETED"
    page = deployed.artifact(f"{path.name}-session")
    assert f"# {path.name}: finished" in page["data"]
    assert "demo-cd200 attempt 1: finished" in page["data"]


@pytest.mark.slow
def test_fifty_cooldowns_at_once_reach_their_end_on_one_sqlite_server(deployed: Deployed) -> None:
    branches = ", ".join(f"{{at: [50], name: n{n}, decay: {{iterations: 5}}}}" for n in range(50))
    flow_run_id = deployed.run(
        "backend.args.train_iters=100",
        f"cooldowns=[{branches}]",
        "slurm.options.mem=100M",
        "slurm.gpus_per_node=0",
        "backend.args.hidden_size=16",
    )
    ended = deployed.ended(flow_run_id)

    assert ended["state_type"] == "COMPLETED", ended["state"]["message"]
    drawn = deployed.subflows(flow_run_id)
    assert len(drawn) == 51
    assert {run["state_type"] for run in drawn} == {"COMPLETED"}
    logs = deployed.ask("POST", "/logs/filter", {"logs": {"level": {"ge_": 30}}, "limit": 200})
    assert not [entry["message"] for entry in logs if "could not show" in entry["message"]]
    # What the API itself could not do; what it tried again inside is its own affair.
    server = (deployed.folder / "server.log").read_text()
    print(f"'database is locked' in the server's log: {server.count('database is locked')} times")


@pytest.mark.slow
def test_people_are_notified_of_a_failed_job_and_of_the_last_cooldown(deployed: Deployed) -> None:
    with Listener() as listener:
        block = {"name": "us", "url": listener.url, "json_data": {"said": "{{body}}"}}
        make = (
            "from prefect.blocks.notifications import CustomWebhookNotificationBlock as B;"
            f"B(**{block!r}).save('us', overwrite=True)"
        )
        deployed.command("python", "-c", make)
        install = ("autoexp", "automations", "install", "--silence", "75")
        said = deployed.command(*install, "--notify", "custom-webhook/us")
        assert "created  autoexp: notify when a job fails" in said
        again = deployed.command(*install, "--notify", "custom-webhook/us")
        assert "created" not in again
        assert again.count("updated") == 5
        flow_run_id = deployed.run(
            "backend.args.train_iters=200",
            "cooldowns=[{at: [50], decay: {iterations: 50}}]",
            "backend.args.fail_at_iteration=120",
        )
        assert deployed.ended(flow_run_id)["state_type"] == "FAILED"
        until(lambda: len(listener.heard) >= 2, "two messages")
    assert any("demo attempt 1: failed" in said for said in listener.heard)
    assert any("the cooldowns of" in said for said in listener.heard)
