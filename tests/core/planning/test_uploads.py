"""Commands behind a training with a machine, a container and a launcher of their own; uploads."""

from typing import Any

import pytest

from autoexp.config.compose import compose
from autoexp.dotted import setting
from autoexp.jobs.record import JobRecord
from autoexp.resources.machines import LocalMachine, SlurmCluster
from autoexp.retention.decision import standings
from autoexp.retention.policy import Retention
from autoexp.retention.uses import Situation
from autoexp.rules.events import CheckpointComplete
from autoexp.schedulers.base import AttemptRef, JobStatus
from autoexp.schedulers.launch import payload_spec
from autoexp.schedulers.mixed import MixedScheduler
from autoexp.session.session import Session
from autoexp.states import Kind, Verdict
from tests.builders import TINY, create, spec_of
from tests.core.planning.stages import jobs, refusal

UPLOAD = {
    "kind": "upload",
    "command": ["rclone", "copy", "{sibling.stable.save_dir}", "s3:lab/{job.name}"],
}


def test_an_upload_runs_beside_the_monitor_of_a_session_on_a_cluster() -> None:
    found = jobs({"up": {**UPLOAD, "slurm": {"kind": "local", "partition": "x"}}}, "slurm=base")
    upload, training = found["tiny-up"], found["tiny"]
    assert upload.kind is Kind.UPLOAD
    assert isinstance(upload.machine, LocalMachine)
    assert isinstance(training.machine, SlurmCluster)
    assert [awaited.job for awaited in upload.awaits] == ["tiny"]


def test_a_transfer_partition_is_a_machine_as_any_other() -> None:
    stages = {"up": {**UPLOAD, "slurm": {"partition": "transfer", "gpus_per_node": 0}}}
    machine = jobs(stages, "slurm=base")["tiny-up"].machine
    assert isinstance(machine, SlurmCluster) and machine.partition == "transfer"


def test_a_command_has_a_container_and_a_launcher_of_its_own() -> None:
    own = {"launcher": "srun", "container": {"kind": "apptainer", "image": "/images/hub.sif"}}
    found = jobs({"up": {**UPLOAD, **own}, "plain": {"command": ["x"]}}, "slurm=base")
    up, plain = found["tiny-up"], found["tiny-plain"]
    assert (up.container.kind, plain.container.kind) == ("apptainer", "none")
    assert isinstance(up.machine, SlurmCluster)
    command = payload_spec(up.machine, up, "key").command
    assert command[0] == "srun" and "/images/hub.sif" in command
    assert isinstance(plain.machine, SlurmCluster)
    assert payload_spec(plain.machine, plain, "key").command == ("x",)


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ({"slurm": {"kind": "slurm"}}, "stages.up.slurm.kind: belongs to the session"),
        ({"container": {"imaeg": "x"}}, "stages.up.container"),
        ({"launcher": "mpirun"}, "launcher"),
    ],
)
def test_what_cannot_be_is_said_with_its_path(stage: dict[str, Any], said: str) -> None:
    assert said in refusal({"up": {**UPLOAD, **stage}})


# Schedulers


class Cluster:
    """Writes down what it is asked about."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def query(self, refs: Any) -> dict[str, JobStatus]:
        self.asked += [ref.key for ref in refs]
        return {ref.key: JobStatus("RUNNING") for ref in refs}


def test_a_cluster_is_asked_about_its_own_attempts_alone(tmp_path: Any) -> None:
    cluster: Any = Cluster()
    scheduler = MixedScheduler(cluster)
    here = AttemptRef("s1-up-a1", tmp_path / "up", "s1-up-a1", "b.sh", "77", is_local=True)
    there = AttemptRef("s1-tiny-a1", tmp_path / "tiny", "s1-tiny-a1", "b.sh", "41")
    found = scheduler.query([here, there])
    assert cluster.asked == ["s1-tiny-a1"]
    assert (found["s1-tiny-a1"].state, found["s1-up-a1"].state) == ("RUNNING", "FAILED")
    cluster.asked.clear()
    scheduler.query([here])
    assert cluster.asked == []  # a session whose uploads alone are left asks nobody


def test_an_attempt_remembers_where_it_runs(tmp_path: Any) -> None:
    stages = {"up": {**UPLOAD, "command": ["x"], "slurm": {"kind": "local"}}}
    path = create(
        compose("demo", [*TINY, "slurm=base"], setting({"stages": stages})),
        tmp_path / "sessions",
        session_id="s1",
    )
    session = Session.load(path)
    for name, is_local in (("tiny", False), ("tiny-up", True)):
        session.change_job(session.jobs[name], launched=True)
        attempt = session.begin_attempt(session.jobs[name])
        assert attempt is not None
        assert session.ref(attempt).is_local is is_local
        assert session.submission_ref(attempt).is_local is is_local


# Retention


@pytest.mark.parametrize(
    ("job", "stays"),
    [
        ({"launched": False}, False),  # it waits for the training, which would keep everything
        ({"launched": True}, True),
        ({"launched": True, "verdict": Verdict.FAILED}, True),  # it can be retried
        ({"launched": True, "verdict": Verdict.FINISHED}, False),
    ],
)
def test_checkpoints_below_a_folder_stay_while_it_is_uploaded(
    job: dict[str, Any], stays: bool
) -> None:
    upload = spec_of("rclone", "copy", "/out/tiny/checkpoints/", "s3:lab", name="up")
    upload = upload.model_copy(update={"kind": Kind.UPLOAD, "parent": "tiny"})
    training = spec_of("x", name="tiny", target_iteration=300)
    saved = tuple(
        CheckpointComplete(job="tiny", iteration=at, path=f"/out/tiny/checkpoints/iter_{at:07d}")
        for at in (100, 200, 300)
    )
    records = {
        "tiny": JobRecord(
            spec=training, launched=True, there_before=[], checkpoints=[100, 200, 300]
        ),
        "up": JobRecord(spec=upload, **job),
    }
    retention = Retention.model_validate({"keep": [{"last": 1}]})
    found = standings(Situation(retention, records, saved))
    kept = {each.checkpoint.iteration for each in found if not each.goes}
    assert kept == ({100, 200, 300} if stays else {300})
