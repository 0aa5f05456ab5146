"""The command line as a user meets it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoexp.session.session import Session
from tests.flows.commands import autoexp, interrupt, start_monitor, wait_until_running
from tests.flows.sessions import BRANCHES, SMALL, Make, hold_back
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.prefect


def test_help_answers_without_the_heavy_imports() -> None:
    code = (
        "import sys\n"
        "from autoexp.cli.main import main\n"
        "assert main(['--help']) == 0\n"
        "heavy = {'prefect', 'hydra', 'pydantic', 'numpy', 'matplotlib', 'rich', 'submitit'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.splitlines()[-1] == "[]", answer.stderr


def test_bad_input_says_what_and_where_and_leaves_nothing_behind(tmp_path: Path) -> None:
    root = tmp_path / "sessions"
    answer = autoexp("run", "demo", "backend.args.train_itres=3", root=root)

    assert answer.returncode == 2
    assert "backend.args.train_itres" in answer.stderr
    assert "did you mean `train_iters`?" in answer.stderr
    assert "override `backend.args.train_itres=3`" in answer.stderr
    assert not root.exists() or not list(root.iterdir())


def test_the_doctor_says_whether_prefects_server_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prefect() -> tuple[int, str]:
        answer = autoexp("doctor", "demo", "slurm=local", "--json", root=tmp_path / "sessions")
        found = {line["what"]: line for line in json.loads(answer.stdout)}
        return answer.returncode, f"{found['prefect']['verdict']}: {found['prefect']['text']}"

    code, said = prefect()
    assert (code, said) == (0, f"ok: {os.environ['PREFECT_API_URL']} answers")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    code, said = prefect()
    assert code == 1
    assert said.startswith("to mend: Prefect's server at http://127.0.0.1:9/api does not answer")


def test_a_plan_shows_jobs_branch_points_and_commands_and_submits_nothing(tmp_path: Path) -> None:
    root = tmp_path / "sessions"
    words = ("plan", "demo", "cooldowns.0.at=[1050]")
    answer = autoexp(*words, root=root)
    assert answer.returncode == 0
    note, tree, *others = answer.stdout.splitlines()
    assert note.startswith("note: ")
    assert "the training is told to save at 1050, besides every 200" in note
    assert tree == "demo  2 jobs: 1 train, 1 cooldown; 0.00 GPU hours"
    assert any("demo-cd1050  cooldown  1050 → 1250" in line for line in others)
    assert "--lr-wsd-decay-iters" not in answer.stdout and "decays over" not in answer.stdout

    answer = autoexp(*words, "--table", "--commands", root=root)
    assert "decays over" in answer.stdout
    assert "--lr-wsd-decay-iters 200" in answer.stdout
    assert not root.exists()


def test_a_session_runs_from_the_command_line_and_is_listed_shown_and_removed(
    tmp_path: Path,
) -> None:
    root = tmp_path / "sessions"
    words = ("run", "demo", "--session", "first", *SMALL, BRANCHES)
    answer = autoexp(*words, root=root, embedded_server=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "Prefect UI while it runs: http://127.0.0.1:" in answer.stdout
    assert "gained" in answer.stdout
    assert str(root / "first" / "plot.png") in answer.stdout

    status = json.loads(autoexp("status", "first", "--json", root=root).stdout)
    assert status["state"] == "finished"
    assert {job["name"]: job["iteration"] for job in status["jobs"]} == {
        "demo": 300,
        "demo-cd100": 150,
        "demo-cd200": 250,
    }
    assert status["actions"] == {"pending": 0, "running": 0, "done": 2, "failed": 0}
    assert {(c["job"], c["iteration"]) for c in status["checkpoints"]} >= {("demo", 100)}

    listed = json.loads(autoexp("sessions", "list", "--json", root=root).stdout)
    assert [(s["session"], s["state"], s["jobs"]) for s in listed] == [("first", "finished", 3)]

    events = autoexp("events", "first", root=root).stdout
    assert events.count("checkpoint 100 of demo is complete") == 1
    assert "iteration" in autoexp("tail", "first", "demo-cd100", root=root).stdout
    assert autoexp("run", "demo", "--session", "first", root=root).returncode == 2

    assert autoexp("sessions", "remove", "first", "--yes", root=root).returncode == 0
    assert not (root / "first").exists()


def test_ctrl_c_leaves_jobs_running_and_resume_brings_the_session_to_its_end(
    make_session: Make,
) -> None:
    path = make_session()
    gate = hold_back(path)
    monitor = start_monitor(path)
    wait_until_running(path)

    output = interrupt(monitor)

    assert monitor.returncode == 130, output
    assert f"autoexp resume {path.name}" in output
    status = json.loads(autoexp("status", path.name, "--json", root=path.parent).stdout)
    assert status["state"] == "stopped"
    assert status["monitor"] is None
    before = status["jobs"][0]["attempts"]
    assert before[0]["state"] == "RUNNING"

    gate.touch()
    # A Prefect server that has never heard of it does as well.
    answer = autoexp("resume", path.name, root=path.parent, embedded_server=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    session = Session.load(path)
    # The same job went on; nothing was submitted twice.
    assert [len(job.attempts) for job in session.jobs.values()] == [1, 1, 1]
    assert session.jobs["demo"].attempts[0].job_id == before[0]["job_id"]


def test_cancel_ends_the_jobs_of_a_session_that_nobody_watches(make_session: Make) -> None:
    path = make_session("backend.args.sleep_per_iteration_ms=1000")
    monitor = start_monitor(path)
    wait_until_running(path)
    interrupt(monitor)

    answer = autoexp("cancel", path.name, root=path.parent)

    assert answer.returncode == 0, answer.stdout + answer.stderr
    session = Session.load(path)
    assert session.jobs["demo"].state == "CANCELLED"
    assert all("cancelled" in (job.reason or "") for job in session.jobs.values())


def test_cancel_goes_through_the_monitor_where_one_is_alive(make_session: Make) -> None:
    path = make_session("backend.args.sleep_per_iteration_ms=1000")
    monitor = start_monitor(path)
    wait_until_running(path)

    refused = autoexp("resume", path.name, root=path.parent)
    assert refused.returncode == 3
    assert f"pid {monitor.pid}" in refused.stderr

    answer = autoexp("cancel", path.name, "demo", root=path.parent)

    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert f"pid {monitor.pid}" in answer.stdout
    output, _ = monitor.communicate(timeout=PATIENCE_S)
    assert monitor.returncode == 1, output
    assert "Finished in state" not in output  # Prefect's words for what the view tells
    session = Session.load(path)
    assert session.jobs["demo"].state == "CANCELLED"
    assert "never started" in (session.jobs["demo-cd100"].reason or "")


def test_a_path_that_looks_like_code_is_only_a_path(tmp_path: Path) -> None:
    root = tmp_path / "a|touch x; $(touch y) ${oc.env:HOME} {project.name},'\"%%"

    answer = autoexp("run", "demo", *SMALL, BRANCHES, root=root)

    assert answer.returncode == 0, answer.stdout + answer.stderr
    (path,) = [found for found in root.iterdir() if found.name[0] != "."]
    command = Session.load(path).jobs["demo-cd100"].spec.command
    assert f"{path}/output/demo-cd100/checkpoints" in command
    assert (path / "output" / "demo-cd100" / "checkpoints" / "iter_0000150").is_dir()
    assert sorted(found.name for found in tmp_path.iterdir()) == [root.name]


@pytest.mark.parametrize(
    "encoding",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""},
    ],
    ids=["latin-1", "C"],
)
def test_a_terminal_without_some_characters_gets_others(
    tmp_path: Path, encoding: dict[str, str]
) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "autoexp", "plan", "demo"],
        env={**os.environ, "AUTOEXP_SESSIONS": str(tmp_path), **encoding},
        capture_output=True,
    )
    assert answer.returncode == 0, answer.stderr
    assert b"0 -> 2000" in answer.stdout
