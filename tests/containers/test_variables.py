"""What a process in the image sees of what is configured."""

from pathlib import Path

import pytest

from tests.containers.boxes import (
    ODD,
    SEEN,
    SETS_OF_OPTIONS,
    TEXTS,
    Image,
    any_name_and_value_arrives,
    box,
)

# What Apptainer's shell does not take, and autoexp refuses.
VALUES = TEXTS.filter(lambda text: not set(text) & set("\x80\x81") and "\r\n" not in text)


@pytest.mark.parametrize("options", SETS_OF_OPTIONS, ids=" ".join)
def test_all_that_is_configured_arrives_as_it_is_written_whatever_the_options_are(
    options: tuple[str, ...], image: Image, tmp_path: Path
) -> None:
    own = image.overrides(*options)
    machine = [f"+slurm.environment.{name}={name.lower()}" for name in ("OF_THE_MACHINE", "OMP")]
    made = box(tmp_path, SEEN, *own, *machine, "container.pass=[SECRET_TOKEN]", **ODD)

    seen = made.run(SECRET_TOKEN="of-my-own")

    assert {name: seen.get(name) for name in ODD} == ODD
    assert (seen["OF_THE_MACHINE"], seen["OMP"]) == ("of_the_machine", "omp")
    assert seen["SECRET_TOKEN"] == "of-my-own"
    assert seen["AUTOEXP_KEY"] == made.ref.key
    assert seen["MASTER_ADDR"] == "127.0.0.1"
    assert "of-my-own" not in (made.ref.directory / "spec.json").read_text()


@pytest.mark.parametrize("options", SETS_OF_OPTIONS, ids=" ".join)
def test_any_name_and_value_arrives(
    options: tuple[str, ...], image: Image, tmp_path_factory: pytest.TempPathFactory
) -> None:
    any_name_and_value_arrives(image.overrides(*options), tmp_path_factory, VALUES)


def test_the_configurations_values_win_over_the_images(image: Image, tmp_path: Path) -> None:
    script = tmp_path / "90-environment.sh"
    script.write_text("export OMP_NUM_THREADS=64\nexport NCCL_SOCKET_IFNAME=eth0\n")
    bind = f"{script}:/.singularity.d/env/90-environment.sh"
    own = image.overrides("--cleanenv", binds=(bind,))
    made = box(tmp_path, SEEN, *own, "+slurm.environment.OMP_NUM_THREADS=7")
    seen = made.run()
    assert (seen["OMP_NUM_THREADS"], seen["NCCL_SOCKET_IFNAME"]) == ("7", "eth0")


def test_the_hosts_python_stays_outside_unless_it_is_asked_for(
    image: Image, tmp_path: Path
) -> None:
    of_the_host = {"PYTHONPATH": "/of/the/host", "PYTHONUSERBASE": str(tmp_path)}
    seen = box(tmp_path / "without", SEEN, *image.overrides()).run(**of_the_host)
    assert "PYTHONPATH" not in seen
    assert seen["PYTHONNOUSERSITE"] == "1"

    asked = (*image.overrides(), "container.pass=[PYTHONPATH,PYTHONNOUSERSITE]")
    seen = box(tmp_path / "asked", SEEN, *asked).run(**of_the_host)
    assert seen["PYTHONPATH"] == "/of/the/host"
    assert "PYTHONNOUSERSITE" not in seen
