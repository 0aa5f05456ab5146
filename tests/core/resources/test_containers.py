"""The training command inside an image, word for word."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from autoexp.config.compose import compose
from autoexp.errors import BadInput
from autoexp.jobs.spec import JobSpec
from autoexp.planning.plan import make_plan
from autoexp.redaction import Variables
from autoexp.schedulers.base import PayloadSpec
from autoexp.schedulers.launch import with_launcher
from autoexp.schedulers.local import LocalScheduler
from autoexp.schedulers.slurm.scheduler import SlurmScheduler
from tests.builders import attempt_of
from tests.containers.boxes import image_of_this_machine

FEW = ("cooldowns=[]", "project.name=boxed")


def trunk(*overrides: str) -> JobSpec:
    experiment = compose("demo", [*FEW, *overrides]).experiment
    return make_plan(experiment, Path("/out")).trunk


def payload_spec(spec: JobSpec) -> PayloadSpec:
    if spec.machine.kind == "local":
        return LocalScheduler().payload_spec(spec, attempt_of())
    raise AssertionError(spec.machine.kind)


def test_without_a_container_the_command_is_the_trainers() -> None:
    spec = trunk()
    assert payload_spec(spec).command == spec.command


@pytest.mark.parametrize("runtime", ["apptainer", "singularity"])
def test_apptainer_binds_the_output_directory_and_runs_its_own_python(runtime: str) -> None:
    spec = trunk(
        f"container={runtime}",
        "container.image=/images/train.sif",
        "container.gpus=rocm",
        "container.binds=[/data:/data:ro]",
        "container.variables={NCCL_DEBUG: INFO}",
        "container.options=[--cleanenv]",
    )
    found = payload_spec(spec)
    assert found.command == (
        *(runtime, "exec", "--rocm", "--bind", "/out", "--bind", "/data:/data:ro"),
        *("--pwd", "/out/boxed", "--cleanenv", "/images/train.sif", "python3"),
        *spec.command[1:],
    )
    assert found.environment[f"{runtime.upper()}ENV_NCCL_DEBUG"] == "INFO"


def test_docker_gets_variables_by_name_so_that_no_value_is_on_its_command_line() -> None:
    spec = trunk(
        "container=docker",
        "container.image=train:1",
        "container.gpus=none",
        "container.variables={WANDB_MODE: offline}",
    )
    command = payload_spec(spec).command
    head = ("docker", "run", "--rm", "--init", "--network", "host", "--ipc", "host")
    assert command[:10] == (*head, "--user", f"{os.getuid()}:{os.getgid()}")
    names = [command[at + 1] for at, word in enumerate(command) if word == "--env"]
    assert {"WANDB_MODE", "AUTOEXP_KEY", "PYTHONUNBUFFERED"} <= set(names)
    assert not any("=" in name for name in names)
    image = command.index("train:1")
    assert command[image - 2 : image] == ("--workdir", "/out/boxed")
    assert command[image + 1 :] == ("python3", *spec.command[1:])


def test_the_launcher_stands_outside_and_the_trainer_inside() -> None:
    spec = trunk(
        "slurm=local_cluster",
        "slurm.launcher=srun",
        "container=apptainer",
        "container.image=/images/train.sif",
        "container.gpus=none",
    )
    machine = spec.machine
    assert machine.kind == "slurm"

    command = SlurmScheduler(machine).payload_spec(spec, attempt_of()).command
    assert command[0] == "srun"
    assert command.index("srun") < command.index("apptainer") < command.index("python3")


def test_an_image_has_to_be_named_and_an_unknown_key_is_refused() -> None:
    with pytest.raises(BadInput, match=r"container\.image"):
        trunk("container=apptainer")
    with pytest.raises(BadInput, match="did you mean `binds`"):
        trunk("container=apptainer", "container.image=x", "container.bind=[/data]")


def in_an_image(*overrides: str) -> JobSpec:
    return trunk("container=apptainer", "container.image=/i.sif", "container.gpus=none", *overrides)


def bound(spec: JobSpec) -> list[str]:
    """What the runtime's command binds, in order."""
    words = payload_spec(spec).command
    return [words[at + 1] for at, word in enumerate(words) if word in ("--bind", "--mount")]


def test_what_autoexp_knows_of_is_bound_once_and_parents_first(tmp_path: Path) -> None:
    spec = in_an_image("container.binds=[/a/b/c:/out/boxed/data:ro, /scratch]")
    elsewhere = {"save_dir": "/elsewhere/ckpt", "reads": ("/scratch/old/ckpt-1", "/x")}
    found = bound(spec.model_copy(update=elsewhere))
    assert found == ["/out", "/x", "/scratch", "/elsewhere/ckpt", "/a/b/c:/out/boxed/data:ro"]

    script = tmp_path / "trainer" / "train.py"
    script.parent.mkdir()
    own = ("backend=huggingface", f"backend.script={script}", "monitoring=basic")
    spec = in_an_image(*own)
    assert bound(spec) == ["/out"]  # as it may lie in the image
    script.touch()
    assert bound(spec) == ["/out", str(script.parent)]


def test_a_bind_of_the_configuration_wins_over_ours() -> None:
    assert bound(in_an_image("container.binds=[/data:/out]")) == ["/data:/out", "/out/boxed"]


@pytest.mark.parametrize(
    ("bind", "message"),
    [
        ("/a,/b", "give each bind as an item of its own"),
        ("/a:/b:ro:x", r"write /path, /host:/inside or /host:/inside:ro"),
        ("/a:b", "the path inside has to be absolute"),
    ],
)
def test_a_bind_that_is_ambiguous_is_refused(bind: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        in_an_image(f"container.binds=['{bind}']")


def test_image_and_binds_are_found_from_where_the_command_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = in_an_image("container.image=images/x.sif", "container.binds=[data, 'other:/o:ro']")
    assert f"{tmp_path}/images/x.sif" in payload_spec(spec).command
    assert {f"{tmp_path}/data", f"{tmp_path}/other:/o:ro"} <= set(bound(spec))
    images = {"./x.sqsh": f"{tmp_path}/x.sqsh", "nvidia/pytorch:25.08": "nvidia/pytorch:25.08"}
    for written, image in images.items():
        (words,) = on_a_cluster(*PYXIS, "cooldowns=[]", f"container.image='{written}'")
        assert f"--container-image={image}" in words


def test_python_is_the_images_wherever_it_stands() -> None:
    command = ("env", "X=1", sys.executable, f"--python={sys.executable}", f"{sys.executable}-x")
    spec = in_an_image().model_copy(update={"command": command})
    words = payload_spec(spec).command
    assert words[-5:] == ("env", "X=1", "python3", "--python=python3", f"{sys.executable}-x")


def test_options_binds_and_variables_may_be_those_of_the_attempt() -> None:
    spec = in_an_image(
        "container.options=['--overlay={output_dir}/{key}.img']",
        "container.binds=['{output_dir}/tmp:/scratch']",
        "container.variables={RUN: '{job} {other}'}",
    )
    found = payload_spec(spec)
    assert "--overlay=/out/boxed/s1-j-a1.img" in found.command
    assert "/out/boxed/tmp:/scratch" in bound(spec)
    assert found.environment["APPTAINERENV_RUN"] == "boxed {other}"


def test_a_runtime_may_have_another_name() -> None:
    assert payload_spec(in_an_image("container.command=/opt/a/apptainer")).command[:2] == (
        *("/opt/a/apptainer", "exec"),
    )
    own = ("container=docker", "container.image=x", "container.command=podman-hpc")
    assert payload_spec(trunk(*own)).command[:2] == ("podman-hpc", "run")


PYXIS = ("slurm=local_cluster", "slurm.launcher=srun", "container=pyxis")


def on_a_cluster(*overrides: str, config: str = "demo") -> list[list[str]]:
    """The commands of a session's jobs on a cluster."""
    experiment = compose(config, [*overrides]).experiment
    jobs = make_plan(experiment, Path("/out")).jobs
    return [list(with_launcher(job.machine, job, "key")) for job in jobs]


def test_pyxis_gets_image_mounts_and_variables_as_options_of_srun_for_stages_as_well() -> None:
    own = ("container.image=/img/x.sqsh", "container.binds=['/data:/data:ro']")
    given = ("+slurm.environment.NCCL_DEBUG=INFO", "container.pass=[HF_TOKEN]")
    commands = on_a_cluster(*PYXIS, *own, *given, config="study")
    for words in commands:
        assert words[0] == "srun"
        assert "--container-image=/img/x.sqsh" in words
        assert "--container-mounts=/out:/out,/data:/data:ro" in words
        (variables,) = [word for word in words if word.startswith("--container-env=")]
        assert {"NCCL_DEBUG", "HF_TOKEN"} <= set(variables.partition("=")[2].split(","))
        assert sys.executable not in words
    assert "--container-workdir=/out/study" in commands[0]
    assert commands[-1][1:3] == ["--nodes=1", "--ntasks=1"]


def test_the_container_engine_of_cscs_gets_its_file() -> None:
    own = ("slurm=local_cluster", "slurm.launcher=torchrun", "container=edf")
    (words, *_) = on_a_cluster(*own, "container.image=/capstor/me/ngc.toml")
    assert "--environment=/capstor/me/ngc.toml" in words
    with pytest.raises(BadInput, match="the environment's file says what is mounted"):
        on_a_cluster(*own, "container.image=ngc", "container.binds=[/data]")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("slurm=local",), "needs a cluster"),
        (("slurm.launcher=none",), r"give `slurm\.launcher`"),
        (("slurm.rendezvous.suffix=i",), r"`slurm\.rendezvous`"),
    ],
)
def test_what_srun_cannot_start_inside_is_refused(overrides: tuple[str, ...], message: str) -> None:
    first = () if overrides == ("slurm=local",) else PYXIS[:2]
    with pytest.raises(BadInput, match=message):
        on_a_cluster(*first, "container=pyxis", "container.image=x", *overrides)


def test_what_is_passed_on_is_named_and_not_stored() -> None:
    spec = in_an_image("container.pass=[HF_TOKEN]")
    assert "HF_TOKEN" in payload_spec(spec).inside["names"]
    assert JobSpec.model_validate(spec.model_dump(mode="json")) == spec
    docker = trunk("container=docker", "container.image=x", "container.pass=[HF_TOKEN]")
    words = payload_spec(docker).command
    assert words[words.index("HF_TOKEN") - 1] == "--env"
    with pytest.raises(BadInput, match="is not the name of a variable"):
        in_an_image("container.pass=['MODE=fast']")
    with pytest.raises(BadInput, match="did you mean `pass`"):
        in_an_image("container.passs=[HF_TOKEN]")


def test_a_character_that_no_variable_may_hold_is_refused() -> None:
    with pytest.raises(BadInput, match="reach no process"):
        in_an_image("container.variables={X: 'a\x80'}")


def test_a_carriage_return_before_a_newline_is_refused() -> None:
    with pytest.raises(ValueError, match="carriage return before a newline"):
        TypeAdapter(Variables).validate_python({"X": "a\r\nb"})
    assert TypeAdapter(Variables).validate_python({"X": "a\nb\r"}) == {"X": "a\nb\r"}


@pytest.mark.skipif(shutil.which("apptainer") is None, reason="there is no apptainer here")
def test_apptainer_runs_the_command_in_the_image_with_its_variables_and_its_output_directory(
    tmp_path: Path,
) -> None:
    output = tmp_path / "output"
    output.mkdir()
    spec = trunk(
        "container=apptainer",
        f"container.image={image_of_this_machine(tmp_path / 'image').path}",
        "container.gpus=none",
        "container.binds=['/usr:/usr:ro']",
        "container.variables={SAID: two words}",
    )
    found = payload_spec(spec)
    script = (
        "import os; from pathlib import Path; Path('seen').write_text("
        "repr([os.environ['SAID'], os.path.exists('/etc/of-the-image'), os.getcwd()]))"
    )
    inside = spec.container.inside((sys.executable, "-c", script), str(output), ())

    answer = subprocess.run(
        inside, env={**os.environ, **found.environment}, capture_output=True, text=True
    )

    assert answer.returncode == 0, answer.stderr
    assert ast.literal_eval((output / "seen").read_text()) == ["two words", True, str(output)]
