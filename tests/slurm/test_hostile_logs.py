"""Lines that once ended the monitor, in every log of a session on the cluster."""

from pathlib import Path

import pytest

from autoexp.flows.train import train
from tests import hostile
from tests.flows.sessions import BRANCHES, SMALL
from tests.slurm.bench import clear_queue

pytestmark = [pytest.mark.slurm, pytest.mark.prefect]


async def test_thirty_jobs_whose_logs_are_hostile_end_with_their_right_verdicts(
    prefect_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOEXP_SESSIONS", str(tmp_path / "sessions"))
    path = hostile.make(tmp_path / "sessions", *SMALL, BRANCHES, "slurm=local_cluster")
    try:
        state = await train(session=path.name, return_state=True)  # type: ignore[var-annotated]
    finally:
        clear_queue(path.name)
    assert state.is_failed(), state.message  # as the commands that end with 3 have
    hostile.check(path)
