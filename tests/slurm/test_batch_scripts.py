"""The batch script of every site, compared with a recorded one that was read by a person."""

import os
import shlex
import sys
from pathlib import Path

import pytest

from autoexp.config.compose import compose
from autoexp.planning.plan import make_plan
from autoexp.resources.machines import SlurmCluster
from autoexp.schedulers.base import SubmitOptions
from autoexp.schedulers.launch import payload_spec
from autoexp.schedulers.slurm.script import body, executor_for
from autoexp.storage.places import SHIPPED
from tests.sources import ROOT

RECORDED = ROOT / "tests" / "data" / "slurm"
SITES = sorted(path.stem for path in (SHIPPED / "slurm").glob("*.yaml"))
CLUSTERS = [site for site in SITES if site not in ("base", "local", "block")]


def script_of(site: str, directory: Path, *overrides: str) -> str:
    """The script of a training; as comments, what it launches and with which variables."""
    experiment = compose("demo", [f"slurm={site}", *overrides]).experiment
    machine = experiment.slurm
    assert isinstance(machine, SlurmCluster)
    trunk = make_plan(experiment, directory / "output").trunk
    spec = trunk.model_copy(update={"command": (sys.executable, "pretrain.py", "--lr", "1e-3")})
    request = SubmitOptions(
        "s1-demo-a1", str(directory / "job.log"), machine, machine.time_limit_min, "4711"
    )
    text = executor_for(machine, directory / "batch.sh", request).script(body(machine, directory))
    ran = payload_spec(machine, spec, "s1-demo-a1")
    text += f"# first: {shlex.join(ran.before)}\n" if ran.before else ""
    text += f"# runs: {shlex.join(ran.command)}\n"
    own = {name: x for name, x in ran.environment.items() if name not in spec.environment}
    text += "".join(f"# with: {name}={value}\n" for name, value in own.items())
    text += "".join(f"# on each node: {name}={x}\n" for name, x in ran.node_environment.items())
    text += f"# meets by: {ran.rendezvous}\n" if ran.rendezvous else ""
    return text.replace(sys.executable, "PYTHON").replace(str(directory), "/attempt")


@pytest.mark.parametrize("site", CLUSTERS)
def test_the_batch_script_of_a_site_is_the_recorded_one(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USER", "somebody")
    recorded = RECORDED / f"{site}.sh"
    if os.environ.get("AUTOEXP_TEST_RECORD"):
        recorded.write_text(script_of(site, tmp_path))
    assert recorded.exists(), "run this test with AUTOEXP_TEST_RECORD=1, and read what it wrote"
    assert script_of(site, tmp_path) == recorded.read_text()


@pytest.mark.parametrize("site", CLUSTERS)
def test_a_process_sees_every_gpu_that_its_local_rank_may_name(site: str) -> None:
    # A trainer takes the GPU of its LOCAL_RANK: of one GPU, which binding by srun leaves in sight,
    # there is number 0 alone.
    machine = compose("demo", [f"slurm={site}"]).experiment.slurm
    assert isinstance(machine, SlurmCluster)
    asked = [
        word for word in (*machine.srun_arguments, *machine.options) if "gpus-per-task" in word
    ]
    assert (machine.gpu_bind or "none", asked) == ("none", [])


def test_account_partition_and_qos_come_from_the_users_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ACCOUNT", "PARTITION", "QOS"):
        monkeypatch.setenv(f"SLURM_{name}", f"my-{name.lower()}")
    lines = script_of("lumi", tmp_path).splitlines()
    assert {"#SBATCH --account=my-account", "#SBATCH --qos=my-qos"} <= set(lines)
    assert "#SBATCH --partition=my-partition" in lines


def test_an_option_of_the_users_own_replaces_submitits_and_a_flag_that_is_off_is_left_out(
    tmp_path: Path,
) -> None:
    options = "slurm.options={exclusive: true, contiguous: false, mem: 0, gpu-bind: closest}"
    lines = script_of("lumi", tmp_path, options).splitlines()
    assert {"#SBATCH --exclusive", "#SBATCH --mem=0", "#SBATCH --gpu-bind=closest"} <= set(lines)
    assert not any("contiguous" in line for line in lines)


@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
def test_srun_is_told_the_cpus_of_a_task_which_it_does_not_inherit(
    tmp_path: Path, launcher: str
) -> None:
    # srun(1), --cpus-per-task: since 22.05 it no longer reads SLURM_CPUS_PER_TASK, and binds the
    # task, with all its threads, to one core.
    text = script_of("leonardo", tmp_path, f"slurm.launcher={launcher}")
    (runs,) = (line for line in text.splitlines() if line.startswith("# runs: "))
    launch = runs.partition("srun ")[2]
    assert "--cpus-per-task=32" in launch or "SRUN_CPUS_PER_TASK" in text
