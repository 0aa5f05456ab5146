"""Where results come from: what a session records and leaves out, and starting again from it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.flows.commands import autoexp
from tests.flows.prefect_home import prefect_home
from tests.flows.sessions import SMALL

pytestmark = pytest.mark.prefect

PLANTED = {
    "HF_TOKEN": "planted-hf-3f81c2",
    "WANDB_API_KEY": "planted-wandb-77ad10",
    "AWS_SECRET_ACCESS_KEY": "planted-aws-c4e9b3",
    "MY_PASSWORD": "planted-password-5510fe",
    "NCCL_CREDENTIALS": "planted-nccl-8d21aa",  # of a family that is recorded
    "SLURM_JWT_TOKEN": "planted-jwt-19fe02",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished session named `first`, made where secrets lie around, on a server of its own."""
    place = tmp_path_factory.mktemp("origins")
    repository = place / "mine"
    repository.mkdir()
    git("init", "-q", ".", at=repository)
    (repository / "settings.py").write_text("rate = 1\n")
    git("add", ".", at=repository)
    git("-c", "user.name=me", "-c", "user.email=me@here", "commit", "-qm", "mine", at=repository)
    (repository / "settings.py").write_text(f"rate = 2\nMY_PASSWORD = '{PLANTED['MY_PASSWORD']}'\n")
    words = ["run", "demo", "--session", "first", *SMALL, "cooldowns=[]"]
    environment = {**os.environ, **PLANTED, "NCCL_DEBUG": "INFO"}
    environment["AUTOEXP_SESSIONS"] = str(place / "sessions")
    environment["PREFECT_HOME"] = str(prefect_home(place))
    environment.pop("PREFECT_API_URL")
    answer = subprocess.run(
        [sys.executable, "-m", "autoexp", *words],
        cwd=repository,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    (place / "said.txt").write_text(answer.stdout + answer.stderr)
    yield place / "sessions"


def git(*arguments: str, at: Path) -> None:
    subprocess.run(["git", "-C", str(at), *arguments], check=True, capture_output=True)


def test_no_secret_reaches_the_session_the_log_or_prefect(root: Path) -> None:
    files = [path for path in root.parent.rglob("*") if path.is_file() and "mine" not in path.parts]
    assert any(path.name.startswith("prefect.db") for path in files)
    assert any(path.name == "job.log" for path in files)
    for path in files:
        content = path.read_bytes()
        found = [name for name, value in PLANTED.items() if value.encode() in content]
        assert found == [], path


def test_a_session_records_code_packages_and_environment(root: Path) -> None:
    folder = root / "first" / "provenance"
    experiment = json.loads((folder / "experiment.json").read_text())
    assert len(experiment["commit"]) == 40
    diff = (folder / "experiment.diff").read_text()
    assert "+rate = 2" in diff
    assert "[left out]" in diff
    assert json.loads((folder / "environment.json").read_text())["NCCL_DEBUG"] == "INFO"
    assert "prefect==" in (folder / "packages.txt").read_text()


def test_a_cooldown_starts_from_any_checkpoint_of_an_older_session(root: Path) -> None:
    short = ("cooldowns=[{decay: {iterations: 40}}]", "backend.args.sleep_per_iteration_ms=0")
    answer = autoexp("run", "--from", "first:demo@200", "--session", "second", *short, root=root)
    assert answer.returncode == 0, answer.stdout + answer.stderr

    session = Session.load(root / "second")
    (job,) = session.jobs.values()
    assert (job.spec.name, job.verdict, job.iteration) == ("demo-cd200", Verdict.FINISHED, 240)
    log = Path(job.attempts[0].log).read_text()
    assert "iteration      210/" in log
    assert "iteration      200/" not in log
    # The older session is as it was.
    assert list(Session.load(root / "first").jobs) == ["demo"]


def test_a_session_starts_again_with_changes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A cluster of this machine is not asked: it has other partitions.
    monkeypatch.setenv("SLURM_CONF", "/dev/null")
    answer = autoexp(
        "plan", "--from", "first", "backend.args.lr=0.02", "slurm=lumi", "--json", root=root
    )
    assert answer.returncode == 0, answer.stderr
    (job,) = json.loads(answer.stdout)["jobs"]
    assert job["command"][job["command"].index("--lr") + 1] == "0.02"
    assert job["target_iteration"] == 300
    assert job["machine"]["partition"] == "standard-g"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--from", "nobody"], "no such session"),
        (["--from", "first:other"], "other: no such job; "),
        (["--from", "first:demo@175"], "no complete checkpoint"),
        (["--from", "first:demo@200"], "how long does it decay?"),
        (["--from", "first@200"], "write SESSION, SESSION:JOB or SESSION:JOB@ITERATION"),
        (["--from", "first", "demo"], "leave out demo"),
    ],
)
def test_what_cannot_be_started_from_is_said_with_what_there_is(
    root: Path, words: list[str], expected: str
) -> None:
    answer = autoexp("plan", *words, root=root)
    assert answer.returncode == 2, answer.stdout
    assert expected in answer.stderr
