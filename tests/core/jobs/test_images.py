"""What a plan says of an image: what it is shown, what is not there, what does not arrive."""

import sys
from pathlib import Path

import pytest

from autoexp.config.compose import compose
from autoexp.errors import BadInput
from autoexp.planning.plan import make_plan


def notes(*overrides: str, config: str = "demo") -> list[str]:
    """The notes of a plan in an image, without those of other matters."""
    own = ("container=apptainer", "container.gpus=none")
    plan = make_plan(compose(config, [*own, *overrides]).experiment, Path("/out"))
    return [note for note in plan.notes if "image" in note or "container" in note]


def test_a_plan_says_what_is_bound(tmp_path: Path) -> None:
    image = tmp_path / "x.sif"
    image.touch()
    assert notes(f"container.image={image}", f"container.binds=[{tmp_path}:/data:ro]") == [
        f"in the image {image}, besides what apptainer mounts by itself: /out, {tmp_path}:/data:ro"
    ]


def test_a_plan_says_that_an_image_or_the_source_of_a_bind_is_not_there() -> None:
    found = notes("container.image=/no/x.sif", "container.binds=['/no/data:/data']")
    assert found[1:] == [
        "container.image: /no/x.sif is not there, as seen from here",
        "container.binds: /no/data is not there, as seen from here",
    ]


def of_convert(container: str, *overrides: str) -> list[str]:
    """The notes of a plan whose stage `convert` has a container of its own."""
    return notes(f"+stages.convert.container={container}", *overrides, config="study")


def test_a_plan_says_so_of_a_stage_with_a_container_of_its_own() -> None:
    lacks = "/no/hf.sif is not there, as seen from here"
    found = of_convert("{image: /no/hf.sif}", "container.image=/no/x.sif")
    assert f"container.image: {lacks.replace('hf', 'x')}" in found
    assert [note for note in found if "hf.sif is not" in note] == [
        f"study-cd1000-convert: container.image: {lacks}"
    ]
    assert sum(note.startswith("in the image /no/hf.sif") for note in found) == 1


def test_a_plan_says_so_of_a_stage_where_the_session_itself_has_no_container() -> None:
    own = "+stages.convert.container={kind: apptainer, image: /no/hf.sif}"
    found = make_plan(compose("study", [own]).experiment, Path("/out")).notes
    lacks = "/no/hf.sif is not there, as seen from here"
    assert f"study-cd1000-convert: container.image: {lacks}" in found


def test_what_a_stages_own_container_cannot_do_is_refused_with_its_name() -> None:
    image = "container.image=/no/x.sif"
    with pytest.raises(BadInput, match=r"cd1000-convert: container\.kind: pyxis is a plugin"):
        of_convert("{kind: pyxis, image: ngc}", image)
    pyxis = ("container=pyxis", "container.image=ngc", "slurm=local_cluster", "slurm.launcher=srun")
    with pytest.raises(BadInput, match=r"cd1000-convert: container\.kind: pyxis is a plugin"):
        make_plan(
            compose("study", [*pyxis, "+stages.convert.slurm={kind: local}"]).experiment,
            Path("/out"),
        )
    with pytest.raises(BadInput, match=r"cd1000-convert: container\.image: each process"):
        of_convert("{image: 'docker://python:3.12'}", image, "slurm=local_cluster")


@pytest.mark.parametrize("kind", ["pyxis", "edf"])
def test_a_plan_says_so_of_the_image_of_a_plugin_where_it_is_a_path(kind: str) -> None:
    own = (f"container={kind}", "slurm=local_cluster", "slurm.launcher=srun")
    plan = make_plan(compose("demo", [*own, "container.image=/no/x"]).experiment, Path("/out"))
    assert "container.image: /no/x is not there, as seen from here" in plan.notes
    plan = make_plan(compose("demo", [*own, "container.image=ngc"]).experiment, Path("/out"))
    assert not any("is not there" in note for note in plan.notes)


def test_a_plan_says_that_a_variable_does_not_arrive() -> None:
    found = notes("container.image=/no/x.sif", "+slurm.environment.LD_LIBRARY_PATH=/lib")
    assert found[-1] == "$LD_LIBRARY_PATH stays outside: inside it is the image's own"


def test_a_plan_says_that_a_program_lies_in_this_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "prefix", "/home/me/venv")
    script = "stages.convert.command=[/home/me/venv/bin/torchrun, '{python}']"
    found = notes("container.image=/no/x.sif", script, config="study")
    where = "/home/me/venv/bin/torchrun lies in this environment, which the image does not show"
    assert f"study-cd1000-convert: {where}" in found


def test_docker_on_a_cluster_is_refused_unless_somebody_insists() -> None:
    docker = ("container=docker", "container.image=x", "slurm=local_cluster")
    with pytest.raises(BadInput, match=r"insist by container\.command"):
        notes(*docker)
    assert notes(*docker, "container.command=docker")


def test_an_image_that_every_process_would_fetch_is_refused_on_a_cluster() -> None:
    image = "container.image=docker://python:3.12"
    with pytest.raises(BadInput, match="apptainer pull"):
        notes(image, "slurm=local_cluster")
    assert notes(image)


CH_RUN = ("container=charliecloud", "slurm=local")


def charliecloud(*overrides: str, output: str = "/out") -> list[str]:
    plan = make_plan(compose("demo", [*CH_RUN, *overrides]).experiment, Path(output))
    return list(plan.notes)


def test_what_ch_run_cannot_mount_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    image, file = tmp_path / "image", tmp_path / "x.sqfs"
    image.mkdir()
    file.touch()
    with pytest.raises(BadInput, match="ch-convert"):
        charliecloud(f"container.image={file}")
    with pytest.raises(BadInput, match="has no /out: make them there"):
        charliecloud(f"container.image={image}")
    assert charliecloud(f"container.image={image}", "container.options=[--write]")
    (image / "out").mkdir()
    assert charliecloud(f"container.image={image}")
    with pytest.raises(BadInput, match="colon in /a:b"):
        charliecloud(f"container.image={image}", output="/a:b")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("container.options=[--env-no-expand]", "handed in by what it turns off"),
        ("container.options=['--unset-env=*']", "what the job needs"),
        ("container.options=[--unset-env, 'R*']", "what the job needs"),
        ("container.binds=['/a:/b:ro']", "to be written alone"),
        ("container.gpus=nv", "container.gpus"),
        ("container.command=apptainer", "container=apptainer"),
    ],
)
def test_what_would_break_a_training_in_ch_run_is_refused(words: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        charliecloud("container.image=/no/image", words)


@pytest.mark.parametrize("where", ["container.variables", "slurm.environment"])
def test_a_variable_that_ch_run_sets_after_all_others_is_refused(where: str) -> None:
    with pytest.raises(BadInput, match="CH_RUNNING: ch-run sets it itself"):
        charliecloud("container.image=/no/image", f"+{where}.CH_RUNNING=mine")


def test_ch_run_as_another_runtimes_command_is_told_its_kind() -> None:
    with pytest.raises(BadInput, match="container=charliecloud"):
        notes("container.image=/no/x.sif", "container.command=/usr/bin/ch-run")
