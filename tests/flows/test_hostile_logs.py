"""Lines that once ended the monitor, in every log of a session."""

from pathlib import Path

import pytest

from autoexp.flows.train import train
from tests import hostile
from tests.flows.sessions import BRANCHES, SMALL

pytestmark = pytest.mark.prefect


async def test_thirty_jobs_whose_logs_are_hostile_end_with_their_right_verdicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOEXP_SESSIONS", str(tmp_path / "sessions"))
    path = hostile.make(tmp_path / "sessions", *SMALL, BRANCHES)
    state = await train(session=path.name, return_state=True)  # type: ignore[var-annotated]
    assert state.is_failed(), state.message  # as the commands that end with 3 have
    hostile.check(path)
