"""What the command line says of a study before and after it runs; no job is started here."""

import csv
import io
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from autoexp.cli.main import main
from autoexp.config.compose import Composed
from autoexp.planning.plan import Plan
from autoexp.planning.study import plan_study
from autoexp.session.session import Session
from autoexp.storage.places import sessions_root

SWEEP = ("backend.args.lr=1e-3,2e-3,3e-3", "backend.args.seed=1,2")
HOURS = ("slurm.gpus_per_node=4", "budget.seconds_per_iteration=9", "cooldowns=[]")  # 20 each

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process; returns its exit code and all that it printed."""
    monkeypatch.setenv("AUTOEXP_SESSIONS", str(tmp_path / "sessions"))
    monkeypatch.setattr("sys.stdin", io.StringIO())

    def call(*words: str) -> tuple[int, str]:
        code = main(words)
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


def test_the_plan_is_a_tree_with_counts_conditions_times_and_hours(run: Run) -> None:
    code, said = run("plan", "study", *SWEEP, *HOURS[:2], "slurm.time_limit_min=600")
    assert code == 0
    assert "study  6 points, 42 jobs: 6 train, 12 cooldown, 12 command, 12 evaluate" in said
    assert "├── study-lr0.001-seed1  train  backend.args.lr=0.001, backend.args.seed=1" in said
    assert "0 → 2000 (512K tokens)  4 GPUs  ≤ 600 min  20.00 GPU h (9 s per iteration)" in said
    assert "starts at checkpoint 1000; cancelled if there never is one" in said
    convert, cooldown = "study-lr0.001-seed1-cd1000-convert", "study-lr0.001-seed1-cd1000"
    assert f"starts when {cooldown} has finished; cancelled when {cooldown} fails" in said
    assert f"starts when {convert} has finished; cancelled when {convert} fails" in said


def test_the_plan_is_json_for_tools_and_svg_for_a_paper(run: Run, tmp_path: Path) -> None:
    _, said = run("plan", "demo", *SWEEP, *HOURS, "--subset", "2,4-5", "--json")
    plan = json.loads(said)
    assert [point["number"] for point in plan["points"]] == [2, 4, 5]
    assert (plan["gpu_hours"], len(plan["jobs"])) == (60.0, 3)

    code, _ = run("plan", "demo", *SWEEP, "--svg", str(tmp_path / "plans" / "plan.svg"))
    assert code == 0
    svg = ET.parse(tmp_path / "plans" / "plan.svg")
    assert "demo-lr0.001-seed1" in "".join(svg.getroot().itertext())


def test_a_dry_run_writes_every_batch_script_and_says_where(run: Run) -> None:
    words = ("slurm=local_cluster", "stages.keep={command: [cp, 'a b', '$(id)']}")
    code, said = run("run", "demo", *words, *SWEEP, "--dry-run")
    directory = sessions_root() / "dry-run-demo"
    assert code == 0
    assert f"24 batch scripts in {directory}" in said.replace("\n", " ")
    scripts = {path.name: path.read_text() for path in directory.glob("*.sh")}
    assert len(scripts) == 24
    trunk = scripts["demo-lr0.001-seed1.sh"]
    assert "#SBATCH --gpus-per-node=4" in trunk
    assert "#SBATCH --time=10:00" in trunk
    assert "--lr 0.001" in trunk.splitlines()[-1]
    assert scripts["demo-lr0.001-seed1-keep.sh"].splitlines()[-1] == "cp 'a b' '$(id)'"
    assert [path.name for path in sessions_root().iterdir()] == ["dry-run-demo"]


def test_above_the_budget_somebody_has_to_agree(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("run", "demo", *HOURS, "budget.confirm_above=10", "--no-monitor")
    code, said = run(*words)
    assert code == 2
    assert "20.00 GPU hours: budget.confirm_above is 10 GPU hours; `--yes` agrees to it" in said
    assert not sessions_root().exists()

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert run(*words)[0] == 2
    assert not sessions_root().exists()
    monkeypatch.setattr("builtins.input", lambda question: "y")
    assert run(*words, "--session", "asked")[0] == 0
    monkeypatch.setattr("builtins.input", None)
    assert run(*words, "--session", "agreed", "--yes")[0] == 0
    assert run(*words[:-1], "budget.confirm_above=20", "--no-monitor", "--session", "below")[0] == 0
    made = sorted(path.name for path in sessions_root().iterdir())
    assert made == ["agreed", "asked", "below"]


def test_hours_that_nobody_knows_are_not_agreed_to_unasked(run: Run) -> None:
    words = ("slurm.gpus_per_node=4", "budget.confirm_above=1000", "--no-monitor")
    code, said = run("run", "demo", *words)
    assert code == 2
    assert "3 jobs of unknown length" in said


def test_a_study_is_exported_compared_and_its_budget_told(run: Run, tmp_path: Path) -> None:
    assert run("submit", "demo", *SWEEP, *HOURS, "--session", "s1")[0] == 0
    code, said = run("export", "s1")
    assert code == 0
    assert [row["gpu_hours_planned"] for row in csv.DictReader(io.StringIO(said))] == ["20.0"] * 6
    files = [str(tmp_path / f"t.{ending}") for ending in ("csv", "parquet")]
    assert run("export", "s1", "s1", "-o", files[0], "-o", files[1])[0] == 0
    assert len(Path(files[0]).read_text().splitlines()) == 13

    _, said = run("compare", "s1")
    head, first, *others = said.splitlines()
    assert head.split()[:3] == ["job", "lr", "seed"]
    assert first.split()[:3] == ["demo-lr0.001-seed1", "0.001", "1"]
    assert len(others) == 5

    assert "planned  120.00 GPU hours" in run("budget", "s1")[1]
    assert run("budget", "s1", "--stop-above", "50")[0] == 0
    assert run("retry", "s1")[1] == "s1: no job has failed\n"
    code, said = run("retry", "s1", "nope")
    assert (code, "nope: no such job" in said) == (2, True)


def test_more_points_join_a_session_later(run: Run) -> None:
    assert run("submit", "demo", *SWEEP, *HOURS, "--session", "s1", "--subset", "1-2")[0] == 0
    assert run("submit", "demo", *SWEEP, *HOURS, "--session", "s1", "--subset", "5")[0] == 0
    session = Session.load(sessions_root() / "s1")
    assert list(session.jobs) == ["demo-lr0.001-seed1", "demo-lr0.001-seed2"]
    (request,) = (sessions_root() / "s1" / "inbox").glob("*.json")
    assert "demo-lr0.003-seed1" in request.read_text()


def test_what_is_submitted_is_planned_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[Path] = []

    def counting(composed: Composed, outputs: Path) -> Plan:
        planned.append(outputs)
        return plan_study(composed, outputs)

    monkeypatch.setattr("autoexp.session.create.plan_study", counting)
    monkeypatch.setattr("autoexp.planning.study.plan_study", counting)
    words = ("demo", "cooldowns=[]", "backend.args.train_iters=200")
    assert run("submit", *words, "--session", "one")[0] == 0
    assert planned == [sessions_root() / "one" / "output"]
    assert run("submit", *words, "project.name=two", "--session", "one")[0] == 0
    assert run("run", *words, "--no-monitor")[0] == 0
    assert len(planned) == 3
    assert run("run", *words, "budget.confirm_above=1", "slurm.gpus_per_node=1")[0] == 2
    assert len(planned) == 4 and not planned[-1].parent.exists()


@pytest.mark.parametrize(
    "code",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_a_terminal_of_another_code_gets_question_marks(
    code: dict[str, str], tmp_path: Path
) -> None:
    config = tmp_path / "exp.yaml"
    text = "defaults: [demo, _self_]\nproject: {description: 学习 é →}\n"
    config.write_text(text, encoding="utf-8")
    environment = {**os.environ, **code, "AUTOEXP_SESSIONS": str(tmp_path / "sessions")}
    for words in (["plan"], ["submit", "--session", "s"]):
        said = subprocess.run(
            [sys.executable, "-m", "autoexp", *words, str(config)],
            env=environment,
            capture_output=True,
            check=False,
        )
        assert said.returncode == 0, said.stderr.decode()
    assert Session.load(tmp_path / "sessions" / "s").experiment.project.description == "学习 é →"
