"""Sessions of the demo inside a real image on a real cluster, and what is done to them."""

import json
import os
import shlex
import shutil
import signal
import sys
from pathlib import Path

import pytest

from autoexp.config.compose import compose
from autoexp.resources.containers import Apptainer, Container
from autoexp.rules.events import StateChanged
from autoexp.schedulers.slurm.scheduler import SlurmScheduler
from autoexp.session.session import Session
from autoexp.states import Kind, Verdict
from tests.builders import create
from tests.containers.boxes import (
    COUNTS,
    MISSING,
    SETS_OF_OPTIONS,
    Image,
    image_of_this_machine,
    runs_here,
)
from tests.core.monitor.driver import Driver
from tests.flows.commands import autoexp
from tests.flows.sessions import SMALL
from tests.patience import until
from tests.slurm.bench import Bench, clear_queue, cluster, slurm
from tests.slurm.commands import Commands
from tests.sources import ROOT

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(not runs_here(), reason=MISSING)]

SESSION = "boxed"
# The demo needs NumPy, which this environment has: its Python, in the image's place.
ENVIRONMENT = (str(ROOT), sys.prefix, sys.base_prefix)
IN_CH_RUN = pytest.mark.skipif(shutil.which("ch-run") is None, reason="there is no ch-run here")
SLOWLY = "backend.args.sleep_per_iteration_ms=60"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """An image whose programs are this machine's."""
    return image_of_this_machine(tmp_path_factory.mktemp("image") / "root")


@pytest.fixture
def places(tmp_path: Path) -> Image:
    """An image of ch-run's own: where it has a place, Apptainer makes none in its /tmp and home."""
    return image_of_this_machine(tmp_path / "image")


def demo_in(image: Image, *options: str) -> tuple[str, ...]:
    """Overrides of a small demo in the image on the cluster, one CPU a job."""
    return (
        *(*SMALL, SLOWLY, "slurm=local_cluster", "slurm.gpus_per_node=0"),
        *image.overrides(*options, binds=ENVIRONMENT),
        f"container.python={sys.executable}",
    )


def watch_to_the_end(path: Path) -> Session:
    """Be the monitor of a session until it is over."""
    driver = Driver(path, SlurmScheduler(cluster()))

    def is_over() -> bool:
        driver.round()
        return driver.session.is_over and not driver.work

    until(is_over, f"the end of {path.name}")
    return Session.load(path)


def test_a_study_in_an_image_outlives_its_time_limit_and_its_monitor(
    image: Image, commands: Commands, tmp_path: Path
) -> None:
    # --containall mounts neither /tmp, where the session lies, nor home: all is bound by name.
    branch = "cooldowns=[{at: [100], decay: {iterations: 50}}]"
    own = [*demo_in(image, "--containall"), branch, "slurm.launcher=srun"]
    path = create(compose("study", own), tmp_path / "scratch", session_id=SESSION)
    try:
        monitor = os.fork()
        if monitor == 0:
            try:
                watch_to_the_end(path)
            finally:
                os._exit(1)
        logs = path / "attempts"
        until(
            lambda: any("lm loss" in f.read_text() for f in logs.glob("*/job.log")),
            "a step",
            seconds=120,
        )
        os.kill(monitor, signal.SIGKILL)
        os.waitpid(monitor, 0)
        # What `--signal=B:USR1@N` sends N seconds before the limit.
        (attempt,) = Session.load(path).jobs["study"].attempts
        slurm("scancel", "--signal=USR1", "--batch", str(attempt.job_id))
        session = watch_to_the_end(path)
    finally:
        clear_queue(SESSION)

    assert {name: job.reason for name, job in session.jobs.items()} == {
        "study": "reached iteration 300",
        "study-cd100": "reached iteration 150",
        "study-cd100-convert": "exit code 0",
        "study-cd100-evaluate": "exit code 0",
    }
    first, second = session.jobs["study"].attempts
    assert first.warned and first.verdict is Verdict.CONTINUE and first.saved is not None
    assert Path(first.log).read_text().count("[exiting program after receiving SIGTERM.]") == 1
    assert second.started_from == first.saved
    assert session.jobs["study-cd100-evaluate"].scores["held_out_loss"] > 0
    assert commands.counts()["sbatch"] == sum(len(job.attempts) for job in session.jobs.values())


@IN_CH_RUN
def test_a_demo_behind_srun_is_trained_to_its_end_in_ch_run(
    places: Image, commands: Commands, tmp_path: Path
) -> None:
    own = (
        *(*SMALL, "slurm=local_cluster", "slurm.gpus_per_node=0", "slurm.launcher=srun"),
        *("cooldowns=[]", "project.name=alone"),
        *places.in_ch_run(binds=ENVIRONMENT),
        f"container.python={sys.executable}",
    )
    path = create(compose("demo", own), tmp_path / "scratch", session_id=SESSION)
    try:
        session = watch_to_the_end(path)
    finally:
        clear_queue(SESSION)
    (job,) = session.jobs.values()
    assert (job.reason, len(job.attempts)) == ("reached iteration 300", 1)
    assert (Path(job.spec.save_dir) / "iter_0000300").is_dir()
    assert commands.counts()["sbatch"] == 1


@IN_CH_RUN
def test_a_payload_killed_over_ch_run_leaves_nothing_that_a_retry_could_meet(
    places: Image, bench: Bench
) -> None:
    container = compose("demo", places.in_ch_run()).experiment.container
    launchers = {"alone": "none", "stepped": "srun"}
    for name, launcher in launchers.items():
        add(bench, container, name, launcher=launcher)
    bench.wait("RUNNING", *launchers)
    until(lambda: all("ready" in bench.log(name) for name in launchers), "trainers")
    assert all(bench.processes(name) for name in launchers)
    for name in launchers:
        kill_payload(bench, name)
    bench.wait("FAILED", *launchers)
    until(lambda: not bench.processes(), "processes of killed payloads")


def test_what_is_cancelled_saves_once_and_of_what_is_killed_nothing_trains_on(
    image: Image, bench: Bench
) -> None:
    # With each set of options at once, alone and behind srun by turns.
    for number, options in enumerate(SETS_OF_OPTIONS):
        for what in ("cancelled", "killed"):
            launcher = ("none", "srun")[number % 2]
            add(bench, in_apptainer(image, options), f"{what}{number}", launcher=launcher)
    cancelled = [name for name in bench.jobs if name.startswith("cancelled")]
    killed = [name for name in bench.jobs if name.startswith("killed")]
    add(bench, in_apptainer(Image(Path(__file__))), "unstarted")
    bench.wait("RUNNING", *cancelled, *killed)
    until(lambda: all("ready" in bench.log(name) for name in (*cancelled, *killed)), "trainers")

    bench.scheduler.cancel(bench.refs(cancelled))
    for name in killed:
        kill_payload(bench, name)

    bench.wait("CANCELLED", *cancelled)
    bench.wait("FAILED", *killed, "unstarted")
    assert [bench.output(name, "saved").read_text() for name in cancelled] == ["1"] * len(cancelled)
    until(lambda: not bench.processes(), "processes of killed payloads")
    bench.watch(lambda: bench.jobs["unstarted"].is_over, "its verdict")
    assert str(bench.jobs["unstarted"].reason).startswith("its container did not start: FATAL: ")


def in_apptainer(image: Image, options: tuple[str, ...] = ()) -> Apptainer:
    """The image as the container of a job."""
    words = {"image": str(image.path), "binds": image.binds, "options": options}
    return Apptainer.model_validate(words)


def kill_payload(bench: Bench, name: str) -> None:
    """Kill the payload of a job, as the kernel does where memory runs out."""
    started = json.loads((bench.ref(name).directory / "started.json").read_text())
    os.kill(started["pid"], signal.SIGKILL)


def add(bench: Bench, container: Container, name: str, **settings: object) -> None:
    """Submit a training in the container that saves on a SIGTERM."""
    job = bench.add(name, ("python3", "-c", COUNTS), kind=Kind.TRAIN, **settings)
    job.spec = job.spec.model_copy(update={"container": container, "target_iteration": None})
    bench.session.save_job(job)
    bench.begin(name)
    bench.send(name, fresh=True)


def test_an_adopted_training_goes_on_in_its_save_directory_wherever_that_lies(
    image: Image, commands: Commands, tmp_path: Path
) -> None:
    # Writable memory is what a save directory that is not bound would be, and nobody would notice.
    own = (*demo_in(image, "--containall", "--writable-tmpfs"), "cooldowns=[]")
    save_dir, log, root = tmp_path / "hand" / "ckpt", tmp_path / "hand" / "log", tmp_path / "root"
    save_dir.mkdir(parents=True)
    # It saves soon, and would take minutes to its end.
    pace = ("backend.args.sleep_per_iteration_ms=500", "backend.args.save_interval=5")
    trainer = compose("demo", [*own, *pace]).experiment.trainer
    words = shlex.join(trainer.trunk_command(save_dir))
    by_hand = ("sbatch", "--parsable", "-p", "main", "--mem=300M", "-J", "by hand")
    job_id = slurm(*by_hand, "-o", str(log), "--wrap", f"exec {words}").strip()
    taken = ("--job-id", job_id, "--backend", "demo", "--save-dir", str(save_dir))
    try:
        until(lambda: (save_dir / "iter_0000005").exists(), "a first checkpoint")
        answer = autoexp("adopt", SESSION, *taken, *own, "project.name=by-hand", root=root)
        assert answer.returncode == 0, answer.stderr
        slurm("scancel", "--signal=TERM", "--full", job_id)
        session = watch_to_the_end(root / SESSION)
    finally:
        slurm("scancel", job_id)
        clear_queue(SESSION)

    job = session.jobs["by-hand"]
    assert job.reason == "reached iteration 300" and (save_dir / "iter_0000300").is_dir()
    first, second = job.attempts
    assert first.name == "by hand" and second.started_from == first.saved
    ends = [entry.event for entry in session.journal.entries]
    assert [e.attempt for e in ends if isinstance(e, StateChanged) and e.new == "COMPLETED"] == [
        1,
        2,
    ]
    del commands
