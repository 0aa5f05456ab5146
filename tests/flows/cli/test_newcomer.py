"""An empty directory, an environment with the wheel, and a trainer of one's own."""

import os
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.flows.prefect_home import prefect_home
from tests.patience import PATIENCE_S
from tests.sources import ROOT


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel in an environment of its own, beside the packages that it asks for."""
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


def test_a_newcomers_trainer_is_trained_cooled_down_and_reported(
    environment: Path, tmp_path: Path
) -> None:
    project = tmp_path / "lab"
    project.mkdir()
    shutil.copy(ROOT / "examples" / "own-trainer" / "train.py", project / "train.py")
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "AUTOEXP", "PYTHON"))
    }
    kept |= {"PATH": f"{environment}:{os.environ['PATH']}"}
    kept |= {"PREFECT_HOME": str(prefect_home(tmp_path))}

    def autoexp(*words: str) -> str:
        answer = subprocess.run(
            [environment / "autoexp", *words],
            cwd=project,
            env=kept,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout

    command = "python train.py --out out --steps 200 --save-every 50 --lr 0.5"
    autoexp("init", "--command", command, "--log-line", "[10/200] loss 9.9 lr 0.5")
    # What is marked in it, and what a cooldown changes.
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

    assert str(project / "train.py") in autoexp("plan", "lab", "--json")
    autoexp("run", "lab", "--session", "first")
    page = Path(autoexp("report", "first", "-o", "lab.html").strip())
    assert page == project / "lab.html" and "lab-cd100" in page.read_text()
    assert "finished" in autoexp("status", "first")
