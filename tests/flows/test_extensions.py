"""A session with the trainer, machine, condition and action of a package."""

import json
from pathlib import Path

import pytest

from autoexp.session.action_records import ActionStatus
from tests.flows.commands import autoexp
from tests.flows.sessions import SMALL
from tests.packages import install

pytestmark = pytest.mark.prefect

OWN = (
    "slurm.kind=desk",
    "backend.kind=mine",
    "cooldowns=[]",
    "+monitoring.checkpoint_events.told={at: [100], actions: [{notify: {message: 'at "
    "{checkpoint_iteration}'}, when: [{quota_left: session.json}]}]}",
)


def test_what_a_package_brings_runs_in_a_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, root = tmp_path / "package", tmp_path / "sessions"
    package.mkdir()
    install(package)
    monkeypatch.setenv("PYTHONPATH", str(package))
    answer = autoexp("run", "demo", *SMALL, *OWN, "--session", "s", root=root)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    path = root / "s"
    assert (path / "told").read_text() == "at 100\n"
    assert len(list(path.glob("attempts/*/on-the-desk"))) == 1
    records = [json.loads(file.read_text()) for file in path.glob("actions/*.json")]
    (told,) = [record for record in records if record["rule"] == "told"]
    assert (told["status"], told["result"]) == (ActionStatus.DONE, "told the group: at 100")
