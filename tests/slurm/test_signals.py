"""What a trainer is told before its time is up, and when it is cancelled."""

import pytest

from autoexp.errors import SchedulerError
from autoexp.states import Kind
from tests.patience import until
from tests.slurm.bench import FOR_EVER, Bench, slurm

pytestmark = pytest.mark.slurm

POLITE = "trap 'sleep 0.5; echo saved; exit 0' TERM; echo ready; sleep 600 & wait"
ASKED = "trap 'echo saved; s=1' USR1; echo ready; while :; do sleep 0.2; echo ${s:+goes on}; done"
DEAF = "trap '' TERM; echo ready; while :; do sleep 0.1; done"


def shell(script: str) -> tuple[str, str, str]:
    return ("sh", "-c", script)


def ready(bench: Bench, *names: str) -> None:
    bench.wait("RUNNING", *names)
    until(lambda: all("ready" in bench.log(name) for name in names), "trainers that listen")


def warn(bench: Bench, name: str) -> None:
    """The signal that `--signal=B:USR1@N` sends N seconds before the limit."""
    slurm("scancel", "--signal=USR1", "--batch", str(bench.attempt(name).job_id))


@pytest.mark.parametrize("launcher", ["none", "srun"])
def test_the_warning_before_the_limit_lets_a_trainer_save(bench: Bench, launcher: str) -> None:
    bench.submit("trainer", shell(POLITE), kind=Kind.TRAIN, launcher=launcher)
    ready(bench, "trainer")
    warn(bench, "trainer")

    bench.watch(lambda: not bench.attempt("trainer").is_open, "the end")
    assert "saved" in bench.log("trainer")
    assert bench.attempt("trainer").state == "COMPLETED"
    assert bench.attempt("trainer").warned


@pytest.mark.parametrize("launcher", ["none", "srun"])
def test_a_trainer_that_is_asked_to_save_now_saves_and_goes_on(bench: Bench, launcher: str) -> None:
    bench.submit("trainer", shell(ASKED), kind=Kind.TRAIN, launcher=launcher)
    ready(bench, "trainer")
    (ref,) = bench.refs()
    assert "accepted" in bench.scheduler.tell(ref, "HUP")
    until(lambda: "saved" in bench.log("trainer"), "the save")
    until(lambda: "goes on" in bench.log("trainer"), "the training goes on")
    bench.wait("RUNNING", "trainer")
    assert not bench.attempt("trainer").warned

    bench.scheduler.cancel(bench.refs())
    bench.wait("CANCELLED", "trainer")
    with pytest.raises(SchedulerError, match="not in the queue"):
        bench.scheduler.tell(ref, "HUP")


@pytest.mark.parametrize("launcher", ["none", "srun"])
def test_every_process_of_a_cancelled_job_ends(bench: Bench, launcher: str) -> None:
    settings = {"kind": Kind.TRAIN, "launcher": launcher}
    bench.submit("polite", shell(POLITE), **settings)
    bench.submit("deaf", shell(DEAF), grace_s=1.0, **settings)
    bench.submit("detached", shell("setsid sleep 600 & echo ready; wait"), **settings)
    bench.submit("pending", FOR_EVER, options={"hold": True}, **settings)
    ready(bench, "polite", "deaf", "detached")
    bench.scheduler.cancel(bench.refs())

    bench.wait("CANCELLED", *bench.jobs)
    until(lambda: not bench.processes(), "processes of cancelled jobs")


@pytest.mark.parametrize("launcher", ["none", "srun"])
def test_a_trainer_that_slurm_ends_has_slurms_kill_wait_to_save(
    bench: Bench, launcher: str
) -> None:
    # As at a preemption or a time limit: SIGTERM, two seconds here (KillWait), SIGKILL.
    bench.submit("trainer", shell(POLITE), kind=Kind.TRAIN, launcher=launcher)
    ready(bench, "trainer")
    bench.scheduler.cancel(bench.refs())
    bench.wait("CANCELLED", "trainer")
    assert "saved" in bench.log("trainer")


def test_nothing_that_a_command_left_behind_outlives_its_job(bench: Bench) -> None:
    bench.submit("job", shell("setsid sleep 600 & echo ready"))
    bench.wait("COMPLETED", "job")
    until(lambda: not bench.processes(), "what it left behind")
