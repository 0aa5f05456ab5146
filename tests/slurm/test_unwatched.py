"""The monitor is dead while everything happens that can happen to a job."""

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoexp.jobs.record import Attempt, JobRecord
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.flows.commands import autoexp
from tests.flows.sessions import BRANCHES, SMALL, hold_back
from tests.patience import until
from tests.slurm.bench import clear_queue, slurm
from tests.slurm.cluster import undisturbed
from tests.slurm.commands import Commands, wrapped

pytestmark = [pytest.mark.slurm, pytest.mark.prefect, pytest.mark.slow]

NO_GPU = ("slurm=local_cluster", "slurm.gpus_per_node=0")
ID = f"unwatched-{secrets.token_hex(2)}"
SLOWLY = "backend.args.sleep_per_iteration_ms=160"  # 48 s for all iterations
# What joins the training `demo`, which has two cooldowns and finishes unwatched.
JOBS = {
    "fails": ("backend.args.fail_at_iteration=100", "backend.args.sleep_per_iteration_ms=20"),
    # Told 20 s before its limit of a minute, it saves and ends: `continue`.
    "limited": (
        *("backend.args.sleep_per_iteration_ms=250", "slurm.partition=short"),
        *("slurm.time_limit_min=1", "slurm.warn_before_limit_s=20"),
    ),
    "requeued": ("backend.args.sleep_per_iteration_ms=100", "slurm.requeue=true"),
    "scancelled": (SLOWLY,),
}


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    with wrapped(tmp_path_factory.mktemp("unwatched")) as found:
        yield found


@pytest.fixture(scope="module")
def session(
    prefect_server: None, commands: Commands, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Session]:
    """The session at its end, after a monitor that was killed and one that took over."""
    del prefect_server, commands
    root = tmp_path_factory.mktemp("unwatched") / "sessions"
    with undisturbed():
        made = autoexp("submit", "demo", *SMALL, *NO_GPU, BRANCHES, "--session", ID, root=root)
        assert made.returncode == 0, made.stderr
        for name, overrides in JOBS.items():
            words = (*SMALL, *NO_GPU, "cooldowns=[]", f"project.name={name}", *overrides)
            added = autoexp("submit", "demo", *words, "--session", ID, root=root)
            assert added.returncode == 0, added.stderr
        gate = hold_back(root / ID)
        try:
            watch_and_die(root)
            gate.touch()
            let_it_happen(root / ID)
            assert autoexp("resume", ID, root=root).returncode == 1
            yield Session.load(root / ID)
        finally:
            clear_queue(ID)


def watch_and_die(root: Path) -> None:
    """A monitor submits all five trainings, and is killed while the first one is held back."""
    environment = {**os.environ, "AUTOEXP_SESSIONS": str(root)}
    command = [sys.executable, "-m", "autoexp", "resume", ID]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as monitor:
        try:
            until(lambda: len(begun(root / ID)) == 1 + len(JOBS), "five trainings that have begun")
        finally:
            monitor.kill()


def begun(path: Path) -> list[str]:
    """The jobs that run, or that have come to their end already, on a slow machine."""
    jobs = Session.load(path).jobs.values()
    return [job.spec.name for job in jobs if job.state not in ("WAITING", "SUBMITTING", "PENDING")]


def let_it_happen(path: Path) -> None:
    """To each training its own end, until all have come to it."""
    jobs = Session.load(path).jobs
    ids = {name: str(jobs[name].attempts[0].job_id) for name in JOBS}
    until(lambda: checkpoints(jobs["requeued"]), "a checkpoint to go on from")
    slurm("scancel", ids["scancelled"])
    slurm("scontrol", "requeue", ids["requeued"])
    # Started again within two seconds, a job is killed; by itself it waits for two minutes.
    time.sleep(4)
    slurm("scontrol", "update", f"JobId={ids['requeued']}", "StartTime=now")
    for name in ("demo", "fails", "limited"):
        until(lambda name=name: exit_file(path, jobs[name]), f"the end of {name}")


def checkpoints(job: JobRecord) -> list[Path]:
    return list(Path(job.spec.save_dir).glob("iter_*/metadata.json"))


def exit_file(path: Path, job: JobRecord) -> dict[str, object]:
    file = path / "attempts" / job.attempts[0].key / "exit.json"
    content: dict[str, object] = json.loads(file.read_text()) if file.exists() else {}
    return content


def first(session: Session, name: str) -> Attempt:
    return session.jobs[name].attempts[0]


def test_a_training_that_finished_has_finished_and_its_cooldowns_were_launched_once(
    session: Session,
) -> None:
    for name, iteration in {"demo": 300, "demo-cd100": 150, "demo-cd200": 250}.items():
        job = session.jobs[name]
        assert (job.verdict, job.iteration) == (Verdict.FINISHED, iteration), job.reason
        assert len(job.attempts) == 1
    assert [action.attempts for action in session.actions.values()] == [1, 1]


def test_a_training_that_failed_has_failed_in_its_own_words(session: Session) -> None:
    job = session.jobs["fails"]
    assert job.verdict is Verdict.FAILED
    assert "exit code 1" in (job.reason or "")


def test_a_training_that_reached_its_limit_went_on_to_its_target(session: Session) -> None:
    job = session.jobs["limited"]
    assert job.verdict is Verdict.FINISHED, job.reason
    assert len(job.attempts) > 1
    assert first(session, "limited").warned
    assert first(session, "limited").verdict is Verdict.CONTINUE


def test_a_training_that_was_requeued_went_on_under_its_id(session: Session) -> None:
    job = session.jobs["requeued"]
    assert job.verdict is Verdict.FINISHED, job.reason
    assert len(job.attempts) == 1


def test_a_training_that_someone_else_cancelled_says_so(session: Session) -> None:
    job = session.jobs["scancelled"]
    assert job.verdict is Verdict.FAILED
    assert "CANCELLED" in (job.reason or "")
    assert "by someone else" in (job.reason or "")


def test_nothing_happened_twice(session: Session) -> None:
    keys = [entry.event.key for entry in session.journal.entries]
    assert len(keys) == len(set(keys))
    ids = [str(a.job_id) for job in session.jobs.values() for a in job.attempts]
    named = slurm("sacct", "-X", "-n", "-P", "-S", "now-1hour", "-o", "JobID,JobName").splitlines()
    ours = [row.split("|")[0] for row in named if row.split("|")[1].startswith(f"{ID}-")]
    assert sorted(ours) == sorted(ids)
