"""An upload behind a training: by rclone, or any command; once more after it has failed."""

import shutil
from pathlib import Path

import pytest

from autoexp.flows.train import train
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.flows.commands import autoexp
from tests.flows.sessions import Make

pytestmark = pytest.mark.prefect

COPIES = {
    "rclone": "[rclone, copy, '{{sibling.stable.save_dir}}', ':local:{target}/{{job.name}}']",
    "cp": "[cp, -ru, '{{sibling.stable.save_dir}}/.', '{target}/{{job.name}}']",
}


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.mark.parametrize("tool", COPIES)
async def test_an_upload_that_failed_goes_on_when_it_is_retried(
    make_session: Make, tmp_path: Path, tool: str
) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    blocked = bucket / "demo-up"
    blocked.write_text("a file where the folder belongs")
    command = COPIES[tool].format(target=bucket)
    path = make_session(
        "cooldowns=[]",
        "backend.args.train_iters=100",
        f"stages={{up: {{kind: upload, command: {command}, slurm: {{kind: local}}}}}}",
    )
    await train(session=path.name, return_state=True)
    upload = Session.load(path).jobs["demo-up"]
    assert upload.verdict is Verdict.FAILED

    blocked.unlink()
    blocked.mkdir()
    answer = autoexp("retry", path.name, "demo-up", root=path.parent)
    assert answer.returncode == 0, answer.stderr
    await train(session=path.name, return_state=True)
    session = Session.load(path)
    assert session.jobs["demo-up"].verdict is Verdict.FINISHED
    saved = files(Path(session.jobs["demo"].spec.save_dir))
    assert saved and files(blocked) == saved
