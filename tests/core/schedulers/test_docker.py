"""A container of a daemon's ends with its attempt, played by a stand-in for Docker's client."""

import os
import signal
from pathlib import Path

import pytest

from autoexp.schedulers.launch import with_launcher
from tests.containers.boxes import Box, box, children, container_ends_before_its_attempt
from tests.patience import until

# The container is no child of the client's, and knows nothing of the job: as behind a daemon. It is
# deaf to what the client passes on.
CLIENT = """#!/bin/bash
cd "{folder}"
case $1 in
run)
    while [ "$1" != --name ]; do shift; done
    setsid env -i PATH="$PATH" sh -c 'echo $$ >draft; mv draft "$0"; exec sleep 600' "$2.pid" &
    trap '' TERM
    while [ -e "/proc/$!/stat" ]; do sleep 0.05; done
    rm -f "$2.pid" ;;
kill) kill -9 "$(cat "$2.pid")" ;;
esac
"""


@pytest.fixture
def made(tmp_path: Path) -> Box:
    """An attempt in a container of the stand-in's."""
    client = tmp_path / "docker"
    client.write_text(CLIENT.replace("{folder}", str(tmp_path)))
    client.chmod(0o755)
    own = ("container=docker", "container.image=x", f"container.command={client}")
    return box(tmp_path / "session", "pass", *own)


def container_of(made: Box, folder: Path) -> int:
    """The process of the container, once it runs."""
    file = folder / f"{made.ref.key}.pid"
    until(file.exists, "the container")
    return int(file.read_text())


def lives(pid: int) -> bool:
    """True for a process that has not ended; what nobody waits for has ended as well."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except FileNotFoundError:
        return False


def test_a_client_that_is_killed_leaves_no_container(made: Box, tmp_path: Path) -> None:
    payload = made.start()
    container = container_of(made, tmp_path)
    (client,) = children(payload.pid)
    os.kill(client, signal.SIGKILL)
    assert payload.wait(60) == 128 + signal.SIGKILL
    assert not lives(container)


def test_of_a_payload_that_is_killed_the_container_ends_before_the_attempt_counts_as_over(
    made: Box, tmp_path: Path
) -> None:
    payload = made.start()
    container = container_of(made, tmp_path)
    container_ends_before_its_attempt(made, payload, lambda: not lives(container))


def test_a_container_that_is_deaf_ends_after_the_grace_time(made: Box, tmp_path: Path) -> None:
    payload = made.start()
    container = container_of(made, tmp_path)
    payload.send_signal(signal.SIGTERM)
    assert payload.wait(60) == 128 + signal.SIGKILL
    assert not lives(container)


def test_processes_that_srun_starts_on_a_node_are_not_named_alike(made: Box) -> None:
    command = with_launcher(made.spec.machine, made.spec, "key")
    assert command[command.index("--name") + 1] == "key"
    own = ("slurm=local_cluster", "container=docker", "container.image=x")
    insisted = (*own, "container.command=podman-hpc", "slurm.launcher=srun")
    spec = box(Path(made.ref.directory).parent / "other", "pass", *insisted).spec
    assert "--name" not in with_launcher(spec.machine, spec, "key")
