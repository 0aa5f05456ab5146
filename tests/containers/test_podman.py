"""Trainings in a container of Docker's kind, by a real podman, which takes Docker's options."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.containers.boxes import (
    COUNTS,
    ODD,
    SEEN,
    TEXTS,
    Image,
    any_name_and_value_arrives,
    box,
    children,
    container_ends_before_its_attempt,
)
from tests.patience import until

pytestmark = pytest.mark.skipif(
    not (shutil.which("podman") and shutil.which("catatonit")),
    reason="podman or catatonit, its init, is not here",
)
NAME = "autoexp-test:1"
SLEEPS = "import time; print('ready', flush=True); time.sleep(600)"
# Podman would raise limits, which a root without all capabilities may not.
OPTIONS = ("--cgroups=disabled", "--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096")
# Its runtime refuses a machine that has both versions of cgroups: it is shown the second alone.
PODMAN = """#!/bin/sh
exec unshare --mount sh -c '
    umount --recursive /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup || exit 90
    exec podman --root {storage}/root --runroot {storage}/run --storage-driver vfs \\
        --cgroup-manager cgroupfs "$@"' podman "$@"
"""


class Podman(NamedTuple):
    """A podman with a storage of its own, which has an image."""

    command: Path
    binds: tuple[str, ...]

    def __call__(self, *words: str) -> str:
        return subprocess.run(
            [self.command, *words], check=True, capture_output=True, text=True
        ).stdout

    @property
    def containers(self) -> list[str]:
        return self("ps", "--all", "--format", "{{.Names}}").split()

    @property
    def overrides(self) -> tuple[str, ...]:
        """Overrides of a training in the image."""
        return (
            *("container=docker", f"container.command={self.command}", "container.gpus=none"),
            *(f"container.image='{NAME}'", f"container.binds={json.dumps(self.binds)}"),
            f"container.options={json.dumps(OPTIONS)}",
        )


@pytest.fixture(scope="module")
def podman(image: Image) -> Iterator[Podman]:
    image.need_directory()
    # Podman takes no path of more than 50 characters for what runs.
    with tempfile.TemporaryDirectory(prefix="podman-", dir="/tmp") as folder:
        storage = Path(folder)
        command = storage / "podman"
        command.write_text(PODMAN.format(storage=storage))
        command.chmod(0o755)
        made = Podman(command, image.binds)
        packed = storage / "image.tar"
        subprocess.run(["tar", "-C", image.path, "-cf", packed, "."], check=True)
        said = ("--change", "ENV OMP=of-the-image", "--change", "ENV OF_THE_IMAGE=yes")
        binds = [f"--volume={bind}" for bind in image.binds]
        try:
            made("import", *said, str(packed), NAME)
            made("run", "--rm", *OPTIONS, *binds, NAME, "true")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"podman starts nothing here: {error.stderr}")
        yield made


def test_what_is_configured_arrives_above_what_the_image_says(
    podman: Podman, tmp_path: Path
) -> None:
    own = (*podman.overrides, "+slurm.environment.OMP=7", "container.pass=[SECRET]")
    made = box(tmp_path, SEEN, *own, **ODD)
    seen = made.run(SECRET="mine", PYTHONPATH="/of/the/host", OF_THE_HOST="yes")
    assert {name: seen.get(name) for name in ODD} == ODD
    assert (seen["OMP"], seen["SECRET"], seen["AUTOEXP_KEY"]) == ("7", "mine", made.ref.key)
    assert seen["OF_THE_IMAGE"] == "yes"
    assert not {"PYTHONPATH", "OF_THE_HOST"} & seen.keys()


def test_any_name_and_value_arrives(
    podman: Podman, tmp_path_factory: pytest.TempPathFactory
) -> None:
    any_name_and_value_arrives(podman.overrides, tmp_path_factory, TEXTS)


def test_the_trainer_gets_a_signal_once(podman: Podman, tmp_path: Path) -> None:
    made = box(tmp_path, COUNTS, *podman.overrides)
    payload = made.start()
    until(lambda: "ready" in made.log, "the trainer")
    assert podman.containers == [made.ref.key]
    payload.send_signal(signal.SIGTERM)
    assert payload.wait(60) == 0, made.log
    assert made.log.splitlines()[-1] == "1"


def test_a_client_that_is_killed_leaves_no_container(podman: Podman, tmp_path: Path) -> None:
    made = box(tmp_path, SLEEPS, *podman.overrides)
    payload = made.start()
    until(lambda: "ready" in made.log, "the trainer")
    (client,) = children(payload.pid)
    os.kill(client, signal.SIGKILL)
    assert payload.wait(60) == 128 + signal.SIGKILL
    until(lambda: podman.containers == [], "the end of the container")


def test_of_a_payload_that_is_killed_the_container_ends_before_the_attempt_counts_as_over(
    podman: Podman, tmp_path: Path
) -> None:
    made = box(tmp_path, SLEEPS, *podman.overrides)
    payload = made.start()
    until(lambda: "ready" in made.log, "the trainer")
    container_ends_before_its_attempt(made, payload, lambda: podman.containers == [])
