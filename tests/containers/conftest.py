"""Tests in a real image; skipped where no Apptainer is installed."""

import os
from pathlib import Path

import pytest

from tests.containers.boxes import MISSING, Image, image_of_this_machine, runs_here


def pytest_runtest_setup(item: pytest.Item) -> None:
    if not runs_here():
        pytest.skip(MISSING)


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The image of `tests/containers/apptainer.sh image`, or one of this machine's programs."""
    made = os.environ.get("AUTOEXP_TEST_IMAGE")
    if made is not None:
        return Image(Path(made))
    return image_of_this_machine(tmp_path_factory.mktemp("image") / "root")
