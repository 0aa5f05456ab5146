"""Trainings in an image of Charliecloud's, by a real ch-run."""

import shutil
import signal
from pathlib import Path

import pytest

from tests.containers.boxes import COUNTS, ODD, SEEN, TEXTS, Image, any_name_and_value_arrives, box
from tests.patience import until

pytestmark = pytest.mark.skipif(shutil.which("ch-run") is None, reason="there is no ch-run here")


OPTIONS = pytest.mark.parametrize(
    "options", [(), ("--set-env",), ("--unset-env=SLURM*",)], ids=" ".join
)


@OPTIONS
def test_what_is_configured_arrives_above_what_the_image_says(
    options: tuple[str, ...], image: Image, tmp_path: Path
) -> None:
    own = (*image.in_ch_run(*options), "+slurm.environment.OMP=7", "container.pass=[SECRET]")
    made = box(tmp_path, SEEN, *own, **ODD)
    seen = made.run(SECRET="mine", PYTHONPATH="/of/the/host", LD_LIBRARY_PATH="/of/the/host")
    assert {name: seen.get(name) for name in ODD} == ODD
    assert (seen["OMP"], seen["SECRET"], seen["AUTOEXP_KEY"]) == ("7", "mine", made.ref.key)
    assert seen["MASTER_ADDR"] == "127.0.0.1"
    assert seen.get("OF_THE_IMAGE") == ("of-the-image" if options == ("--set-env",) else None)
    assert not {"PYTHONPATH", "LD_LIBRARY_PATH"} & seen.keys()
    assert not any(name.startswith("AUTOEXPENV_") for name in seen)


@OPTIONS
def test_any_name_and_value_arrives(
    options: tuple[str, ...], image: Image, tmp_path_factory: pytest.TempPathFactory
) -> None:
    any_name_and_value_arrives(image.in_ch_run(*options), tmp_path_factory, TEXTS)


def test_a_variable_of_ch_runs_own_arrives_as_it_is_configured(
    image: Image, tmp_path: Path
) -> None:
    names = ("HOME", "USER", "PATH", "LD_LIBRARY_PATH", "TMPDIR")
    own = dict.fromkeys(names, "/usr/bin:$HOME:")
    seen = box(tmp_path, SEEN, *image.in_ch_run("--set-env"), **own).run()
    assert {name: seen.get(name) for name in own} == own


def test_the_trainer_gets_a_signal_once(image: Image, tmp_path: Path) -> None:
    made = box(tmp_path, COUNTS, *image.in_ch_run())
    payload = made.start()
    until(lambda: "ready" in made.log, "the trainer")
    payload.send_signal(signal.SIGTERM)
    assert payload.wait(60) == 0, made.log
    assert made.log.splitlines()[-1] == "1"
