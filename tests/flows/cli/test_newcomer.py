"""An empty directory, an environment with the wheel, and no network but loopback.

PyPI cannot be had there: the environment sees the packages of the one that runs the tests.
"""

import json
import shlex
import shutil
import signal
import site
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.no_network import no_network
from tests.flows.prefect_home import prefect_home
from tests.patience import PATIENCE_S
from tests.sources import ROOT

pytestmark = pytest.mark.prefect


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel, beside the packages that it asks for."""
    folder = tmp_path_factory.mktemp("newcomer")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-index"]
    subprocess.run([*install, "--no-deps", "--quiet", str(wheel)], check=True)
    (own,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # What is named in a .pth file there is not read again: no editable install comes with it.
    (own / "packages.pth").write_text("\n".join(site.getsitepackages()))
    return folder / "venv" / "bin"


class Newcomer:
    """Somebody in a directory of their own, in the environment of a login."""

    def __init__(self, programs: Path, offline: list[str], home: Path) -> None:
        self.directory = home / "lab"
        self.directory.mkdir()
        self._programs = programs
        self._offline = offline
        self.environment = {
            "PATH": f"{programs}:/usr/bin:/bin",
            "HOME": str(home),
            # Its database is made once for all tests; that of a newcomer is made as it is found.
            "PREFECT_HOME": str(prefect_home(home)),
        }

    def start(self, *words: str) -> "subprocess.Popen[str]":
        """A command of the environment, without a network."""
        return subprocess.Popen(
            [*self._offline, self._programs / words[0], *words[1:]],
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *words: str) -> str:
        """What a command prints that ends well."""
        process = self.start(*words)
        output, _ = process.communicate(timeout=2 * PATIENCE_S)
        assert process.returncode == 0, output
        return output


@pytest.fixture
def newcomer(environment: Path, tmp_path: Path) -> Iterator[Newcomer]:
    with no_network() as offline:
        yield Newcomer(environment, offline, tmp_path)


def write_project(newcomer: Newcomer) -> None:
    """`autoexp init` for a trainer, and the two lines that it leaves to its user."""
    project = newcomer.directory
    shutil.copy(ROOT / "examples" / "own-trainer" / "train.py", project / "train.py")
    command = "python train.py --out out --steps 200 --save-every 50 --lr 0.5"
    newcomer.run("autoexp", "init", "--command", command, "--log-line", "[10/200] loss 9.9 lr 0.5")
    file = project / "configs" / "lab.yaml"
    text = file.read_text()
    lines = [line for line in text.splitlines() if "<-- look" in line]
    assert [line.split()[0] for line in lines] == ["cooldown:", "saves:"]
    text = text.replace(lines[0], "  cooldown: {--decay-from: '{branch_iteration}'}")
    saved = "{folder: ckpt, name: '{iteration}', must_parse: [state.json], tracker: latest}"
    text = text.replace(lines[1], f"  saves: {saved}")
    file.write_text(
        f"{text}\ncooldowns: [{{at: [100], decay: {{iterations: 50, shape: linear}}}}]\n"
    )


def test_the_demo_runs_in_an_empty_directory(newcomer: Newcomer) -> None:
    output = newcomer.run("autoexp", "run", "demo")
    assert "demo-cd1600" in output and "Traceback" not in output
    (page,) = newcomer.run("autoexp", "report", "-o", "demo.html").split()
    assert "demo-cd1000" in Path(page).read_text()


def test_a_newcomers_trainer_is_trained_cooled_down_reported_and_deployed(
    newcomer: Newcomer,
) -> None:
    write_project(newcomer)
    project = newcomer.directory
    assert str(project / "train.py") in newcomer.run("autoexp", "plan", "lab", "--json")
    newcomer.run("autoexp", "run", "lab", "--session", "first")
    (page,) = newcomer.run("autoexp", "report", "first", "-o", "lab.html").split()
    assert page == str(project / "lab.html") and "lab-cd100" in Path(page).read_text()
    assert "finished" in newcomer.run("autoexp", "status", "first")

    assert f"Runs work in {project}." in newcomer.run("autoexp", "deploy")
    newcomer.environment["PREFECT_PROFILE"] = "autoexp"
    worker = newcomer.start("autoexp", "worker")
    try:
        # Without parameters: a deployment of this project runs this project's configuration.
        run = ("deployment", "run", "autoexp-train/lab-train", "--watch")
        newcomer.run("python", "-m", "prefect", *run)
    finally:
        worker.send_signal(signal.SIGINT)
        said, _ = worker.communicate(timeout=PATIENCE_S)
    listed = json.loads(newcomer.run("autoexp", "sessions", "list", "--json"))
    assert [session["state"] for session in listed] == ["finished", "finished"], said
    assert {session["session"] for session in listed} > {"first"}


def commands_of(page: str) -> list[list[str]]:
    """The commands that stand in a page, indented as code."""
    lines = (ROOT / "docs" / page).read_text().splitlines()
    return [shlex.split(line) for line in lines if line.startswith("    ")]


def test_the_commands_of_the_page_for_clusters_run_as_they_stand(newcomer: Newcomer) -> None:
    found = commands_of("hpc-tutorial.md")
    worker = None
    try:
        for words in found:
            match words:
                case ["export", setting]:
                    newcomer.environment.update([setting.split("=")])
                case ["autoexp", "worker"]:
                    worker = newcomer.start(*words)
                case ["prefect", *arguments]:
                    newcomer.run("python", "-m", "prefect", *arguments)
                case _:
                    said = newcomer.run(*words)
    finally:
        assert worker is not None
        worker.send_signal(signal.SIGINT)
        worker.communicate(timeout=PATIENCE_S)
    assert len(found) == 5 and "demo-cd1600" in said and "finished" in said
