"""The real cluster of cluster.sh: broken, mended and left whole."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.patience import until
from tests.slurm.bench import slurm

CLUSTER = Path(__file__).with_name("cluster.sh")


class Cluster:
    """The daemons of tests/slurm/cluster.sh."""

    def __call__(self, *arguments: str) -> None:
        """Run cluster.sh."""
        answer = subprocess.run(
            [CLUSTER, *arguments],
            env={k: v for k, v in os.environ.items() if k != "PATH"}
            | {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr

    def mend(self) -> None:
        """Bring back what is down and wait until every node is idle."""
        self("up")
        until(self._is_idle, "three idle nodes")

    @staticmethod
    def _is_idle() -> bool:
        states = slurm("sinfo", "-h", "-N", "-p", "main", "-o", "%T").split()
        return states == ["idle"] * 3


@contextmanager
def undisturbed() -> Iterator[Cluster]:
    """A cluster that is whole and idle, before and after."""
    cluster = Cluster()
    cluster.mend()
    try:
        yield cluster
    finally:
        cluster.mend()
