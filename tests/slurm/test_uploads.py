"""A session on a cluster whose upload runs beside the monitor."""

from pathlib import Path

import pytest

from autoexp.states import Verdict
from tests.flows.sessions import Make
from tests.slurm.watching import run_to_the_end

pytestmark = [pytest.mark.slurm, pytest.mark.prefect]


async def test_an_upload_needs_no_allocation(make_session: Make, tmp_path: Path) -> None:
    command = f"[cp, -r, '{{sibling.stable.save_dir}}', '{tmp_path}/bucket']"
    path = make_session(
        "cooldowns=[]",
        "backend.args.train_iters=100",
        f"stages={{up: {{kind: upload, command: {command}, slurm: {{kind: local}}}}}}",
    )
    ended = await run_to_the_end(path)
    assert ended.state == "COMPLETED", ended.message
    jobs = ended.session.jobs
    assert {job.verdict for job in jobs.values()} == {Verdict.FINISHED}
    assert [job.attempts[0].is_local for job in jobs.values()] == [False, True]
    assert (tmp_path / "bucket" / "iter_0000100").is_dir()
