"""Uploads of sessions on a cluster: beside the monitor, and through a partition of their own."""

from pathlib import Path

import pytest

from autoexp.rules.events import CheckpointDeleted
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.flows.commands import autoexp, start_monitor
from tests.flows.sessions import Make
from tests.patience import PATIENCE_S, until
from tests.slurm.bench import slurm
from tests.slurm.commands import Commands
from tests.slurm.watching import run_to_the_end

pytestmark = [pytest.mark.slurm, pytest.mark.prefect]

# Says that it ran, and where: twice is once too often.
UPLOAD = """
echo "$SLURM_JOB_ID $SLURM_JOB_PARTITION" >>{folder}/runs
until [ -e {folder}/may-go ]; do sleep 0.1; done
cp -r "$1" {folder}/bucket
"""


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


@pytest.mark.slow
def test_an_upload_in_a_partition_of_its_own_outlives_its_monitor_and_retention_waits_for_it(
    make_session: Make, tmp_path: Path, commands: Commands
) -> None:
    script = tmp_path / "upload.sh"
    script.write_text(UPLOAD.format(folder=tmp_path))
    command = f"[sh, '{script}', '{{sibling.stable.save_dir}}/iter_0000100']"
    machine = "{partition: preemptible, gpus_per_node: 0}"
    path = make_session(
        "cooldowns=[]",
        "retention={keep: [{last: 1}]}",
        f"stages={{up: {{kind: upload, command: {command}, slurm: {machine}}}}}",
    )
    first = start_monitor(path)
    try:
        until((tmp_path / "runs").exists, "the upload runs")
    finally:
        first.kill()
        first.communicate()

    session = Session.load(path)
    upload = session.jobs["demo-up"].attempts[0]
    named = Path(session.jobs["demo"].spec.save_dir) / "iter_0000100"
    saved = {file.name: file.read_bytes() for file in named.iterdir()}
    commands.forget()
    second = start_monitor(path)
    try:
        until(lambda: len(commands.calls("squeue")) > 2, "looks of the second monitor")
        assert deleted(path) == [50, 150, 200, 250]
        shown = autoexp("checkpoints", path.name, root=path.parent).stdout
        (line,) = [line for line in shown.splitlines() if line.split()[1:2] == ["100"]]
        assert line.endswith("once demo-up has finished"), shown
    finally:
        (tmp_path / "may-go").touch()
        output, _ = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 0, output

    session = Session.load(path)
    assert {job.verdict for job in session.jobs.values()} == {Verdict.FINISHED}
    assert [attempt.key for attempt in session.jobs["demo-up"].attempts] == [upload.key]
    # By the job's own word and by SLURM's: once, and not where the training ran.
    assert (tmp_path / "runs").read_text() == f"{upload.job_id} preemptible\n"
    columns = ("-n", "-P", "-S", "now-1hour", "-o", "JobID,Partition")
    assert slurm("sacct", "-X", *columns, "--name", upload.key).split() == [
        f"{upload.job_id}|preemptible"
    ]
    training = session.jobs["demo"].attempts[0]
    assert slurm("sacct", "-X", *columns, "--name", training.key).split() == [
        f"{training.job_id}|main"
    ]
    copied = (tmp_path / "bucket").iterdir()
    assert saved and {file.name: file.read_bytes() for file in copied} == saved
    assert deleted(path) == [50, 100, 150, 200, 250] and not named.exists()


def deleted(path: Path) -> list[int]:
    """The iterations of the checkpoints that retention has deleted."""
    seen = [entry.event for entry in Session.load(path).journal.entries]
    return sorted(event.iteration for event in seen if isinstance(event, CheckpointDeleted))
